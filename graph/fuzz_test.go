package graph

import (
	"io"
	"strings"
	"testing"
	"time"

	"bj/fleet"
)

// FuzzSaved reads anything as a saved graph: what is read answers every
// question, and prints back to what is read the same.
func FuzzSaved(f *testing.F) {
	f.Add([]byte(asJSON((&Saved{Schema: schemaOf("graph")}))))
	g, err := New(plant("a\nb/x,y\nc\nr1: a < b/x\nr2: b/x < a\nr3: b/y < *\nr4: a < c"), Options{})
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(asJSON(g.Saved())))
	f.Add([]byte(`{"schema": "bj.graph.graph/1", "services": [{"name": "a", "pathways": []}], "recipes": [{"label": "r", "service": "a", "restores": []}], "edges": [{"from": "a", "to": "a", "recipe": "r", "pathways": ["default"], "effort": -1}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := ReadSaved(data)
		if err != nil {
			return
		}
		g, err := s.Graph()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ReadSaved([]byte(asJSON(g.Saved())))
		if err != nil {
			t.Fatalf("%v: %s", err, asJSON(g.Saved()))
		}
		back, err := again.Graph()
		if err != nil {
			t.Fatal(err)
		}
		if a, b := asJSON(g.Saved()), asJSON(back.Saved()); a != b {
			t.Errorf("%s becomes %s", a, b)
		}
		if len(g.services) > 50 {
			return
		}
		cycles := g.Cycles()
		for _, a := range []interface{ WriteText(io.Writer) error }{cycles, g.Cuts(20 * time.Millisecond), g.Order(2), g.Outage(OutageOptions{All: true}), g.Stats()} {
			if err := a.WriteText(io.Discard); err != nil {
				t.Error(err)
			}
		}
		if _, err := g.Diff(s, cycles); err != nil {
			t.Error(err)
		}
		if err := g.View().WriteDOT(io.Discard); err != nil {
			t.Error(err)
		}
	})
}

// FuzzWaivers reads anything as waivers.
func FuzzWaivers(f *testing.F) {
	f.Add([]byte(`[{"services": ["a", "b"], "owner": "o", "reason": "r", "expires": "2030-01-31"}]`))
	f.Add([]byte(`{"waivers": [null]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		waivers, err := ReadWaivers("w", data)
		if err != nil {
			return
		}
		again, err := ReadWaivers("w", []byte(asJSON(waivers2(waivers))))
		if err != nil || len(again) != len(waivers) {
			t.Errorf("%+v becomes %+v, %v", waivers, again, err)
		}
		(&Cycles{}).Waive(waivers, time.Now())
	})
}

// waivers2 are waivers as a file has them.
func waivers2(in []fleet.Waiver) []map[string]any {
	out := []map[string]any{}
	for _, w := range in {
		out = append(out, map[string]any{"services": w.Services, "owner": w.Owner, "reason": w.Reason, "expires": w.Expires})
	}
	return out
}

// FuzzTraces reads anything as what a graph is compared with.
func FuzzTraces(f *testing.F) {
	for _, seed := range []string{
		`{"resourceSpans": [{"resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "a"}}]}, "scopeSpans": [{"spans": [{"traceId": "5b8efff798038103d269b633813fc60c", "spanId": "eee19b7ec3c1b174", "parentSpanId": "eee19b7ec3c1b173", "kind": 3, "links": [{}], "attributes": [{"key": "peer.service", "value": {"stringValue": "b"}}]}]}]}]}`,
		`{"data": [{"traceID": "1", "spans": [{"spanID": "1", "processID": "p", "references": [{"spanID": "1"}], "tags": [{"key": "peer.service", "value": 1}]}], "processes": {"p": {"serviceName": "a"}}}]}`,
		`{"schema": "bj.graph.graph/1"}`, `{"data": null}`, `[]`, ``,
	} {
		f.Add([]byte(seed))
	}
	g, err := New(plant("a\nb\nr1: a < b"), Options{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		saved, calls, err := ReadForDiff(data)
		if err != nil {
			if saved != nil || calls != nil {
				t.Errorf("%v, and yet %v, %v", err, saved, calls)
			}
			return
		}
		for _, c := range calls {
			if c.From == c.To || c.From == "" || c.To == "" || c.Count < 1 {
				t.Errorf("%+v", c)
			}
		}
		if saved == nil {
			var out strings.Builder
			if err := g.DiffTraces(calls).WriteText(&out); err != nil {
				t.Error(err)
			}
		}
	})
}
