package verdict

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"
)

// FuzzStep reads a recorded stream, one JSON object a line in a record file and
// an array here, and runs it. Whoever made the file, it must neither panic nor
// break a promise, and come out the same twice.
func FuzzStep(f *testing.F) {
	f.Add([]byte(`[{"now":1}]`))
	f.Add([]byte(`[{"now":1000000000,"late":900000000,"appeared":[{"key":{"ns":10,"cookie":1},"remote":"10.9.0.1:6379","permit":1,"owner":"a"}],` +
		`"samples":[{"key":{"ns":10,"cookie":1},"state":2,"timer":1,"unacked":1,"segs_in":3,"data_segs_out":4,"total_retrans":3}]},` +
		`{"now":4000000000,"probes":[{"id":1,"path":{"ns":10,"endpoint":"10.9.0.1:6379"},"started":3000000000,"outcome":1}],` +
		`"next_hops":[{"path":{"ns":10,"endpoint":"10.9.0.1:6379"},"at":3000000000,"gateway":2}],"unrelated":[{"ns":10,"stalled":1}]},` +
		`{"now":9000000000,"gone":[{"ns":10,"cookie":1}],"reaped":[{"key":{"ns":10,"cookie":1},"at":5,"outcome":"reaped"}]}]`))
	f.Add([]byte(`[{"now":1000000000,"endpoints":[{"endpoint":"10.9.0.1:6379","state":"ok","role":"primary","run_id":"a","at":1000000000}],` +
		`"appeared":[{"key":{"ns":10,"cookie":1},"remote":"10.9.0.7:6379","backend":"10.9.0.1:6379","run_id":"a","role":"primary","permit":1}],` +
		`"samples":[{"key":{"ns":10,"cookie":1},"state":2,"segs_in":3}]},` +
		`{"now":2000000000,"endpoints":[{"endpoint":"10.9.0.1:6379","state":"demoted","since":1500000000,"run_id":"b","at":2000000000,"policies":{"on_demoted":"reap"},` +
		`"successor":"10.9.0.2:6379"}],"fenced":[{"path":{"ns":10,"endpoint":"10.9.0.1:6379"},"state":"refused"}]},` +
		`{"now":4000000000,"endpoints":[{"endpoint":"10.9.0.1:6379","forget":true}]}]`))
	f.Add(recordedDown())
	f.Fuzz(func(t *testing.T, raw []byte) {
		var steps []Input
		if json.Unmarshal(raw, &steps) != nil || len(steps) > 500 {
			return
		}
		a := newAuditor(profiles("fast"))
		a.record = true
		for i := range steps {
			if _, err := a.step(&steps[i]); err != nil {
				t.Fatal(err)
			}
		}
		if err := a.again(); err != nil {
			t.Fatal(err)
		}
	})
}

// recordedDown is a short recording of an endpoint that vanishes.
func recordedDown() []byte {
	w := newWorld(profiles("fast"), 1, func(err error) { panic(err) })
	w.record = true
	w.eps = []*simEndpoint{{name: "A", addr: netip.MustParseAddrPort("10.9.0.1:6379"), rtt: time.Millisecond}}
	w.connect(&simClient{name: "c", ns: 10, ep: w.eps[0], kind: busy, every: 50 * time.Millisecond, permit: MayReap, stays: true})
	w.run(400*time.Millisecond, nil)
	w.eps[0].vanished = true
	w.run(1200*time.Millisecond, nil)
	raw := []byte("[")
	for i, in := range w.inputs {
		if i > 0 {
			raw = append(raw, ',')
		}
		raw = append(raw, in...)
	}
	return append(raw, ']')
}
