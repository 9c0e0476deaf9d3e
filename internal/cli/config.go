package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/internal/paths"
)

func newConfigCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "config",
		Short: "Check, show or reload the configuration",
	}, newConfigCheckCommand(), newConfigShowCommand(), newConfigReloadCommand())
}

func newConfigCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check [FILE]",
		Short: "Check a config file",
		Long: `Check reads a config file, by default ` + paths.Config + `,
as the daemon would, and lists every mistake with file and line. The exit code is
3 if there are mistakes, and 1 if the file cannot be read.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path := paths.Config
			if len(args) == 1 {
				path = args[0]
			}
			if _, err := config.Load(path); err != nil {
				if _, ok := errors.AsType[*config.Error](err); ok {
					return &exitError{code: ExitFindings, err: err}
				}
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: ok\n", path)
			return nil
		},
	}
}

func newConfigShowCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show the settings in effect, defaults included",
		Long: `Show writes the settings that the daemon would run with as a complete config
file: what the file says, and the default of every key that it leaves out.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, from, err := loadConfig(path)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "# %s\n", from)
			writeConfig(out, c)
			return nil
		},
	}
	configFlag(cmd, &path)
	return cmd
}

// configFlag adds --config to a command that reads the config by loadConfig.
func configFlag(cmd *cobra.Command, path *string) {
	cmd.Flags().StringVar(path, "config", "", "config `FILE` (default "+paths.Config+", or without one the built-in settings)")
}

// loadConfig reads the config file at path. Without a path it reads the default
// one, and where there is none it takes the defaults. from says which it was.
func loadConfig(path string) (c config.Config, from string, err error) {
	asked := path != ""
	if !asked {
		path = paths.Config
	}
	c, err = config.Load(path)
	switch {
	case err == nil:
		return c, path, nil
	case !asked && errors.Is(err, fs.ErrNotExist):
		return config.Default(), "defaults: there is no " + path, nil
	}
	return config.Config{}, "", err
}

// writeConfig writes c as a config file with every key. Names and order are those
// of the fields of config.Config.
func writeConfig(w io.Writer, c config.Config) {
	v := reflect.ValueOf(c)
	var tables []int
	for i := range v.NumField() {
		if v.Field(i).Kind() == reflect.Struct {
			tables = append(tables, i) // in TOML they must come last
			continue
		}
		if v.Field(i).Type() == reflect.TypeFor[[]config.TargetSection]() {
			continue // the last of all
		}
		fmt.Fprintf(w, "%s = %s\n", keyName(v.Type().Field(i).Name), tomlValue(v.Field(i)))
	}
	for _, i := range tables {
		table := v.Field(i)
		fmt.Fprintf(w, "\n[%s]\n", keyName(v.Type().Field(i).Name))
		for j := range table.NumField() {
			name, value := keyName(table.Type().Field(j).Name), tomlValue(table.Field(j))
			if table.Type() == reflect.TypeFor[config.ReapSection]() && name == "down_after" && c.Reap.DownAfter == 0 {
				value = fmt.Sprintf(`"" # the profile's, %v`, c.EffectiveDownAfter())
			}
			if table.Type() == reflect.TypeFor[config.TuneSection]() && table.Field(j).Kind() == reflect.Int && value == strconv.Itoa(config.Leave) {
				value = `""`
			}
			fmt.Fprintf(w, "%s = %s\n", name, value)
		}
	}
	for i := range c.Targets {
		writeTarget(w, reflect.ValueOf(c.Targets[i]))
	}
}

// writeTarget writes a [[target]] and its tables.
func writeTarget(w io.Writer, v reflect.Value) {
	fmt.Fprint(w, "\n[[target]]\n")
	for i := range v.NumField() {
		if name := v.Type().Field(i).Name; v.Field(i).Kind() != reflect.Struct && name != "InlinePassword" {
			fmt.Fprintf(w, "%s = %s\n", keyName(name), tomlValue(v.Field(i)))
		}
	}
	for i := range v.NumField() {
		table, name := v.Field(i), keyName(v.Type().Field(i).Name)
		if table.Kind() != reflect.Struct {
			continue
		}
		fmt.Fprintf(w, "[target.%s]\n", name)
		for j := range table.NumField() {
			key := keyName(table.Type().Field(j).Name)
			if name == "visible_to" && key == "commands" {
				continue // a command is nobody's name
			}
			fmt.Fprintf(w, "%s = %s\n", key, tomlValue(table.Field(j)))
		}
	}
}

// keyName turns a field's name into its key's: DumpCPU into dump_cpu, TCPRetries2
// into tcp_retries2. A word begins after a small letter, and before one.
func keyName(field string) string {
	var b strings.Builder
	runes := []rune(field)
	for i, r := range runes {
		if unicode.IsUpper(r) && i > 0 && (unicode.IsLower(runes[i-1]) || i+1 < len(runes) && unicode.IsLower(runes[i+1])) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

// tomlValue writes one value of a config.
func tomlValue(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case config.Scope:
		if x.Of == config.ScopeGlobs {
			return tomlValue(reflect.ValueOf(x.Globs))
		}
		return strconv.Quote(x.Of.String())
	case time.Duration:
		return strconv.Quote(x.String())
	case fmt.Stringer: // the enums
		return strconv.Quote(x.String())
	}
	switch v.Kind() {
	case reflect.String:
		return tomlString(v.String())
	case reflect.Float64:
		s := strconv.FormatFloat(v.Float(), 'f', -1, 64)
		if !strings.Contains(s, ".") {
			s += ".0"
		}
		return s
	case reflect.Slice:
		items := make([]string, v.Len())
		for i := range items {
			items[i] = tomlValue(v.Index(i))
		}
		return "[" + strings.Join(items, ", ") + "]"
	}
	return fmt.Sprint(v.Interface())
}

// tomlString quotes s as TOML does, whose escapes are fewer than Go's.
func tomlString(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case unicode.IsControl(r):
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
