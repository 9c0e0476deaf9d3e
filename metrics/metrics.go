// Package metrics shows the guard's figures in Prometheus' text format.
//
// Label values come from closed sets and are there from the start, as zero: no
// address, connection, pod or process is ever a label, so that the number of
// series is the same on every node. The names of targets are those of the config. Names follow Prometheus' guide: base units,
// and _total for what only grows.
package metrics

import (
	"context"
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/redisguard/redisguard/api"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/internal/figures"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

// Guard is what is asked of the figures.
type Guard interface {
	Figures() figures.Figures
	View(ctx context.Context) (*view.Node, error)
}

// Events is what is asked of the hub.
type Events interface {
	Counts() map[verdict.EventType]uint64
	Snapshot(ended bool) event.Snapshot
}

// Config of the metrics. Guard, Events and API must be set.
type Config struct {
	Guard  Guard
	Events Events
	// API is asked for the server's counters at each scrape: a function, since
	// the server is made with the metrics that it serves.
	API func() api.Counters
	// Version and Revision are of the program.
	Version, Revision string
}

// New answers scrapes.
func New(c Config) http.Handler {
	return promhttp.HandlerFor(Registry(c), promhttp.HandlerOpts{
		// A scrape costs some milliseconds; many at once are a mistake.
		MaxRequestsInFlight: 4,
		Timeout:             10 * time.Second,
	})
}

// Registry holds the guard's figures, and those of the process and of Go's
// runtime.
func Registry(c Config) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(newCollector(c), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collectors.NewGoCollector())
	return r
}

// reading is everything that one scrape is made of.
type reading struct {
	Config
	figures.Figures
	events map[verdict.EventType]uint64
	now    event.Snapshot
	node   *view.Node // nil if it did not answer in time
	api    api.Counters
}

// metric is one of them. Of count and spread one is set.
type metric struct {
	name, help string
	labels     []string
	kind       prometheus.ValueType
	// count says the values of the metric, spread its distributions, each with
	// the values of labels.
	count  func(r *reading, say func(value float64, labels ...string))
	spread func(r *reading, say func(d figures.Distribution, labels ...string))
}

// viewWithin is how long the watcher may take for a copy of its tables, which is
// usually the rest of its round.
const viewWithin = 2 * time.Second

// collector reads everything once for each scrape.
type collector struct {
	conf    Config
	metrics []metric
	descs   []*prometheus.Desc
}

func newCollector(c Config) *collector {
	col := &collector{conf: c, metrics: all()}
	for _, f := range col.metrics {
		col.descs = append(col.descs, prometheus.NewDesc(f.name, f.help, f.labels, nil))
	}
	return col
}

func (c *collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		to <- d
	}
}

func (c *collector) Collect(to chan<- prometheus.Metric) {
	r := reading{Config: c.conf, Figures: c.conf.Guard.Figures(), events: c.conf.Events.Counts(), now: c.conf.Events.Snapshot(false), api: c.conf.API()}
	ctx, cancel := context.WithTimeout(context.Background(), viewWithin)
	defer cancel()
	// Without it, what stands in it is left out: an old number would look like a
	// new one.
	r.node, _ = c.conf.Guard.View(ctx)
	for i, f := range c.metrics {
		if f.spread != nil {
			f.spread(&r, func(d figures.Distribution, labels ...string) { to <- histogram(c.descs[i], d, labels) })
			continue
		}
		f.count(&r, func(v float64, labels ...string) {
			to <- prometheus.MustNewConstMetric(c.descs[i], f.kind, v, labels...)
		})
	}
}

// histogram turns a distribution into Prometheus' form, where each bucket holds
// those of the smaller ones, too.
func histogram(desc *prometheus.Desc, d figures.Distribution, labels []string) prometheus.Metric {
	buckets := make(map[float64]uint64, len(d.Upper))
	var n uint64
	for i, upper := range d.Upper {
		n += d.Buckets[i]
		buckets[upper.Seconds()] = n
	}
	return prometheus.MustNewConstHistogram(desc, d.Count, d.Sum.Seconds(), buckets, labels...)
}

// number is a metric without labels.
func number[T int64 | int | uint64](kind prometheus.ValueType, name, help string, read func(*reading) T) metric {
	return metric{name: name, help: help, kind: kind, count: func(r *reading, say func(float64, ...string)) { say(float64(read(r))) }}
}

// perKey is a metric with a label for each key of a map.
func perKey[K comparable, N int64 | uint64](name, help, label string, read func(*reading) map[K]N, word func(K) string) metric {
	return metric{name: name, help: help, labels: []string{label}, kind: prometheus.CounterValue, count: func(r *reading, say func(float64, ...string)) {
		for k, n := range read(r) {
			say(float64(n), word(k))
		}
	}}
}

// perWord is perKey where the keys are the words.
func perWord(name, help, label string, read func(*reading) map[string]int64) metric {
	return perKey(name, help, label, read, func(s string) string { return s })
}

// goVersion is that of the toolchain.
func goVersion() string { return runtime.Version() }
