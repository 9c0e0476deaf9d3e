package config

import (
	"fmt"
	"net/netip"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// A key is one setting: its name in the file and how to read, check and show
// the field behind it. decode and check say what is wrong, "" for nothing.
type key struct {
	name    string // with its table: "reap.rate"
	allowed string // in words, for errors
	field   any    // pointer to the field
	decode  func(v any) (problem string)
	check   func() (problem string)
	show    func() string
}

func enumKey[E interface {
	~int
	fmt.Stringer
}](name string, field *E, all ...E) key {
	var names []string
	for _, e := range all {
		names = append(names, `"`+e.String()+`"`)
	}
	return key{
		name:    name,
		allowed: strings.Join(names, ", "),
		field:   field,
		decode: func(v any) string {
			s, ok := v.(string)
			if !ok {
				return wrongType(v)
			}
			for _, e := range all {
				if e.String() == s {
					*field = e
					return ""
				}
			}
			return clip(s) + " is none of its values"
		},
		check: func() string {
			if !slices.Contains(all, *field) {
				return (*field).String() + " is none of its values"
			}
			return ""
		},
		show: func() string { return (*field).String() },
	}
}

func boolKey(name string, field *bool) key {
	return key{
		name:    name,
		allowed: "true or false",
		field:   field,
		decode: func(v any) string {
			b, ok := v.(bool)
			if !ok {
				return wrongType(v)
			}
			*field = b
			return ""
		},
		check: func() string { return "" },
		show:  func() string { return strconv.FormatBool(*field) },
	}
}

func intKey[I int | int64 | uint32](name string, field *I, least, most int64) key {
	k := key{
		name:    name,
		allowed: fmt.Sprintf("a whole number from %d to %d", least, most),
		field:   field,
		show:    func() string { return fmt.Sprint(*field) },
	}
	outside := func(n int64) string {
		if n < least || n > most {
			return fmt.Sprintf("%d is out of range", n)
		}
		return ""
	}
	k.decode = func(v any) string {
		n, ok := v.(int64)
		if !ok {
			return wrongType(v)
		}
		// Checked before the conversion, which might cut a huge number down to a
		// possible one.
		if problem := outside(n); problem != "" {
			return problem
		}
		*field = I(n)
		return ""
	}
	k.check = func() string { return outside(int64(*field)) }
	return k
}

func floatKey(name string, field *float64, least, most float64) key {
	allowed := fmt.Sprintf("a number from %g to %g", least, most)
	if least > 0 && least < 1e-300 { // the smallest float there is stands for "above 0"
		allowed = fmt.Sprintf("a number above 0, at most %g", most)
	}
	return key{
		name:    name,
		allowed: allowed,
		field:   field,
		decode: func(v any) string {
			switch n := v.(type) {
			case float64:
				*field = n
			case int64: // 500 for 500.0
				*field = float64(n)
			default:
				return wrongType(v)
			}
			return ""
		},
		check: func() string {
			if !(*field >= least && *field <= most) { // this way round NaN is outside
				return fmt.Sprintf("%g is out of range", *field)
			}
			return ""
		},
		show: func() string { return strconv.FormatFloat(*field, 'g', -1, 64) },
	}
}

func durationKey(name string, field *time.Duration, least, most time.Duration) key {
	return key{
		name:    name,
		allowed: fmt.Sprintf(`a duration with its unit from "%s" to "%s"`, short(least), short(most)),
		field:   field,
		decode: func(v any) string {
			s, ok := v.(string)
			if !ok {
				return wrongType(v) // a bare number would leave the unit to guesswork
			}
			d, err := time.ParseDuration(s)
			if err != nil {
				return clip(s) + " is no duration"
			}
			*field = d
			return ""
		},
		check: func() string {
			if *field < least || *field > most {
				return fmt.Sprintf("%q is out of range", short(*field))
			}
			return ""
		},
		show: func() string { return short(*field) },
	}
}

// orZero lets a duration also be 0 or "", which hand the choice to another
// setting.
func orZero(k key, field *time.Duration) key {
	decode, check := k.decode, k.check
	k.allowed = `"", or ` + k.allowed
	k.decode = func(v any) string {
		if v == "" || v == int64(0) {
			*field = 0
			return ""
		}
		return decode(v)
	}
	k.check = func() string {
		if *field == 0 {
			return ""
		}
		return check()
	}
	return k
}

// wholeSeconds is for what the kernel counts in seconds.
func wholeSeconds(k key, field *time.Duration) key {
	check := k.check
	k.allowed += ", in whole seconds"
	k.check = func() string {
		if *field%time.Second != 0 {
			return fmt.Sprintf("%q has a part of a second", short(*field))
		}
		return check()
	}
	return k
}

// orLeave lets a number also be "", which leaves a sysctl as it is.
func orLeave(k key, field *int) key {
	decode, check, show := k.decode, k.check, k.show
	k.allowed = `"", or ` + k.allowed
	k.decode = func(v any) string {
		if v == "" {
			*field = Leave
			return ""
		}
		return decode(v)
	}
	k.check = func() string {
		if *field == Leave {
			return ""
		}
		return check()
	}
	k.show = func() string {
		if *field == Leave {
			return `""`
		}
		return show()
	}
	return k
}

// scopeKey is a word, or a list of globs.
func scopeKey(name string, field *Scope) key {
	words := []ScopeOf{ScopeRedis, ScopeHost, ScopeAll}
	globs := globsKey(name, &field.Globs)
	return key{
		name:    name,
		allowed: `"redis", "host", "all", or ` + globs.allowed,
		field:   field,
		decode: func(v any) string {
			s, ok := v.(string)
			if !ok {
				field.Of = ScopeGlobs
				return globs.decode(v)
			}
			for _, w := range words {
				if w.String() == s {
					*field = Scope{Of: w}
					return ""
				}
			}
			return clip(s) + " is none of its values"
		},
		check: func() string {
			switch {
			case field.Of == ScopeGlobs && len(field.Globs) == 0:
				return "names nothing"
			case field.Of == ScopeGlobs:
				return globs.check()
			case !slices.Contains(words, field.Of) || len(field.Globs) > 0:
				return field.Of.String() + " is none of its values"
			}
			return ""
		},
		show: func() string {
			if field.Of == ScopeGlobs {
				return globs.show()
			}
			return field.Of.String()
		},
	}
}

func portsKey(name string, field *[]uint16) key {
	return key{
		name:    name,
		allowed: fmt.Sprintf("a list of at most %d different port numbers from 1 to 65535", maxPorts),
		field:   field,
		decode: func(v any) string {
			list, ok := v.([]any)
			if !ok {
				return wrongType(v)
			}
			ports := make([]uint16, 0, len(list))
			for _, item := range list {
				n, ok := item.(int64)
				if !ok {
					return "one of the list: " + wrongType(item)
				}
				if n < 1 || n > 65535 {
					return fmt.Sprintf("%d is no port", n)
				}
				ports = append(ports, uint16(n))
			}
			*field = ports
			return ""
		},
		check: func() string {
			if len(*field) > maxPorts {
				return fmt.Sprintf("%d ports are too many", len(*field))
			}
			for i, p := range *field {
				if p == 0 {
					return "0 is no port"
				}
				if slices.Contains((*field)[:i], p) {
					return fmt.Sprintf("%d stands there twice", p)
				}
			}
			return ""
		},
		show: func() string { return fmt.Sprint(*field) },
	}
}

func globsKey(name string, field *[]string) key {
	return key{
		name:    name,
		allowed: `a list of patterns such as "batch-*" (path.Match syntax: * ? [a-z] \x)`,
		field:   field,
		decode: func(v any) string {
			list, ok := v.([]any)
			if !ok {
				return wrongType(v)
			}
			globs := make([]string, 0, len(list))
			for _, item := range list {
				s, ok := item.(string)
				if !ok {
					return "one of the list: " + wrongType(item)
				}
				globs = append(globs, s)
			}
			*field = globs
			return ""
		},
		check: func() string {
			if len(*field) > maxGlobs {
				return fmt.Sprintf("%d patterns are too many (at most %d)", len(*field), maxGlobs)
			}
			for _, g := range *field {
				switch _, err := path.Match(g, ""); {
				case g == "":
					return `"" matches nothing`
				case len(g) > maxGlobLen:
					return fmt.Sprintf("%s is too long (at most %d bytes)", clip(g), maxGlobLen)
				case err != nil:
					return clip(g) + " is no valid pattern"
				}
			}
			return ""
		},
		show: func() string { return fmt.Sprintf("%q", *field) },
	}
}

func fileKey(name string, field *string) key {
	return key{
		name:    name,
		allowed: `an absolute path, or "" for none`,
		field:   field,
		decode: func(v any) string {
			s, ok := v.(string)
			if !ok {
				return wrongType(v)
			}
			*field = s
			return ""
		},
		check: func() string {
			s := *field
			if s == "" {
				return ""
			}
			// A daemon's working directory says nothing, and the path is
			// written to logs.
			if !filepath.IsAbs(s) || filepath.Clean(s) != s || len(s) > 4095 || strings.ContainsFunc(s, unicode.IsControl) {
				return clip(s) + " is no clean absolute path"
			}
			return ""
		},
		show: func() string { return fmt.Sprintf("%q", *field) },
	}
}

// wrongType names what stands in the file in the words of TOML.
func wrongType(v any) string {
	switch v := v.(type) {
	case string:
		return "the string " + clip(v) + " is of the wrong type"
	case int64, float64, bool:
		return fmt.Sprintf("%v is of the wrong type", v)
	case []any:
		return "a list is of the wrong type"
	case map[string]any, []map[string]any:
		return "a table is of the wrong type"
	case time.Time:
		return "a date is of the wrong type"
	default:
		return "the value is of the wrong type"
	}
}

// short writes a duration as one would in the file: "10m", not "10m0s".
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// socketKey is a path that a Unix socket can have: sun_path holds 108 bytes, and
// the socket is made under a longer name first.
func socketKey(name string, field *string) key {
	k := fileKey(name, field)
	k.allowed = `an absolute path of at most 90 bytes, or "" for none`
	path := k.check
	k.check = func() string {
		if len(*field) > 90 {
			return clip(*field) + " is too long for a socket"
		}
		return path()
	}
	return k
}

// wordKey is a string that ok accepts.
func wordKey(name, allowed string, field *string, ok func(string) bool) key {
	return key{
		name: name, allowed: allowed, field: field,
		decode: func(v any) string {
			s, isString := v.(string)
			if !isString {
				return wrongType(v)
			}
			*field = s
			return ""
		},
		check: func() string {
			if *field != "" && !ok(*field) {
				return clip(*field) + " is none"
			}
			return ""
		},
		show: func() string { return fmt.Sprintf("%q", *field) },
	}
}

// groupKey is a group. Whether there is such a group depends on the machine.
func groupKey(name string, field *string) key {
	return wordKey(name, `the name or number of a group, or "" for none`, field, func(s string) bool {
		return len(s) <= 64 && !strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) || r == ':' || r == '/' })
	})
}

// addrKey is a TCP address to listen at.
func addrKey(name string, field *string) key {
	return wordKey(name, `"ip:port" as in "127.0.0.1:9420", or "" for none`, field, func(s string) bool {
		a, err := netip.ParseAddrPort(s)
		return err == nil && a.Port() != 0
	})
}
