package event

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"bj/fleet"
	"bj/lang/diag"
)

// record plays one run into r.
func record(r *Recorder, label string, at time.Time) {
	tell := func(e Event) {
		at = at.Add(time.Second)
		e.Time, e.Recipe = at, label
		r.Event(e)
	}
	tell(Event{Event: Build, Text: "long before"})
	tell(Event{Event: Lease})
	tell(Event{Event: StepStarted, Step: "serve", Machine: "m-0", Supplier: "//other:r"})
	tell(Event{Event: ValidationStarted, Step: "ok", Phase: PhaseEmpty})
	tell(Event{Event: ValidationFinished, Step: "ok", Phase: PhaseEmpty, Held: ptr(false)})
	tell(Event{Event: StepStarted, Step: "go", Machine: "m-0"})
	tell(Event{Event: StepStarted, Step: "go", Machine: "m-1"})
	tell(Event{Event: OutputWritten, Step: "go", Machine: "m-0", Text: strings.Repeat("é", 50_000) + "end"})
	tell(Event{Event: StepFinished, Step: "go", Machine: "m-1", Seconds: ptr(2.0), Exit: ptr(3)})
	tell(Event{Event: StepFinished, Step: "go", Machine: "m-0", Seconds: ptr(1.0), Exit: ptr(0)})
	tell(Event{Event: FaultDone, Step: "loss", Machine: "m-1", Seconds: ptr(0.5)})
	tell(Event{Event: ValidationStarted, Step: "ok", Phase: PhaseFinal})
	tell(Event{Event: OutputWritten, Step: "ok", Machine: "m-0", Text: "fine"})
	tell(Event{Event: ValidationFinished, Step: "ok", Phase: PhaseFinal, Held: ptr(true), Seconds: ptr(4.0)})
	for range 2 {
		tell(Event{Event: BlockedSeen, Blocked: &Blocked{Protocol: "tcp", Destination: Destination{Address: "10.0.0.1", Port: 1}, Count: 2}})
	}
	tell(Event{Event: UsedCounted, Used: &Used{Allow: "a", Count: 1}})
	tell(Event{Event: VerdictGiven, Verdict: &Verdict{Verdict: Recovered, Root: "host", Except: []string{"key"}}})
	tell(Event{Event: Released})
}

func TestRecorder(t *testing.T) {
	dir := t.TempDir()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var all sync.WaitGroup
	for i := range 8 { // as of several bj at once
		all.Go(func() {
			r := &Recorder{Dir: dir, Origin: Origin{Digest: func(label string) string { return "d " + label }}}
			r.Event(Event{Event: Start, Version: "0.1"})
			record(r, "//p:r", at.Add(time.Duration(i)*time.Hour))
			record(r, "//p:other", at)
			if err := r.Err(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	records, err := Records(dir, "//p:r")
	if err != nil {
		t.Fatal(err)
	}
	if len(records) != 8 {
		t.Fatalf("%d records", len(records))
	}
	for i, x := range records {
		if i > 0 && !records[i-1].Start.Before(x.Start) {
			t.Error("not in order")
		}
	}
	x := records[0]
	if x.Digest != "d //p:r" || x.Version != "0.1" || !x.Start.Equal(at.Add(2*time.Second)) || x.Verdict.Verdict != Recovered || x.Root != "host" || len(x.Except) != 1 {
		t.Errorf("%+v", x)
	}
	var steps []string
	for _, s := range x.Steps {
		text := fmt.Sprintf("%s %s %v", s.Title, s.Machine, s.Seconds)
		if s.Exit != nil {
			text += fmt.Sprintf(" exit %d", *s.Exit)
		}
		if s.Held != nil {
			text += fmt.Sprintf(" held %t", *s.Held)
		}
		steps = append(steps, text)
	}
	if got := strings.Join(steps, ", "); got != "go m-0 1 exit 0, go m-1 2 exit 3, loss m-1 0.5, ok  4 held true" {
		t.Errorf("steps: %s", got)
	}
	if o := x.Steps[0].Output; len(o) > maxRecordedOutput || !strings.HasSuffix(o, "éend") || x.Steps[3].Output != "fine" {
		t.Errorf("output: %d bytes", len(o))
	}
	if len(x.Blocked) != 1 || x.Blocked[0].Count != 4 || len(x.Used) != 1 {
		t.Errorf("%+v", x)
	}
	if none, err := Records(dir, "//p:never"); none != nil || err != nil {
		t.Errorf("%v, %v", none, err)
	}
}

func TestRecordsSaysWhatIsBroken(t *testing.T) {
	dir := t.TempDir()
	r := &Recorder{Dir: dir}
	record(r, "//p:r", time.Unix(0, 0))
	for name, text := range map[string]string{"a.json": "{", "b.json": `{"schema": "bj.result/9", "recipe": "//p:r"}`, "c.json": `{"schema": "bj.result/1", "recipe": "//p:x"}`, ".new-1": "{", "d.txt": "x"} {
		if err := os.WriteFile(filepath.Join(dir, SafeName("//p:r"), name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	records, err := Records(dir, "//p:r")
	if len(records) != 1 || err == nil || strings.Count(err.Error(), "\n") != 2 || !strings.Contains(err.Error(), "newer bj") {
		t.Errorf("%d records, %v", len(records), err)
	}
}

func TestSafeName(t *testing.T) {
	long := "//" + strings.Repeat("x/", 300) + ":"
	for label, want := range map[string]string{
		"//p:r": "p=r", "//a/b:c.d_e-f": "a+b=c.d_e-f", "//a+b:c": "a%2Bb=c", "//..:x": "%2E.=x", "//ä:x": "%C3%A4=x", "//:r": "=r",
	} {
		if got := SafeName(label); got != want {
			t.Errorf("%s: %s, want %s", label, got, want)
		}
	}
	if a, b := SafeName(long+"a"), SafeName(long+"b"); len(a) > maxName || a == b {
		t.Errorf("%d %s %s", len(a), a, b)
	}
}

func TestDigest(t *testing.T) {
	f := func() (*fleet.Fleet, *fleet.Recipe) {
		r := &fleet.Recipe{Label: "//p:r", Service: "s", Pos: diag.Pos{File: "a", Line: 1},
			Conditions: []fleet.Condition{{Service: "d", Pathways: []string{"x"}, Why: "because", Text: `allow("d")`}, {Service: "doc", Pathways: []string{"x"}}},
			Strategy:   []fleet.Action{{Step: &fleet.Step{Title: "t", Run: []fleet.Script{{Machine: "m", Text: "go"}}, Env: map[string]string{"text": "a"}}}},
			Secrets:    []fleet.Secret{{Name: "S", Value: "v"}, {Name: "F", Source: "p/secret"}},
			Files:      []fleet.File{{Path: "/etc/a", Source: "p/a"}},
			Tools:      []fleet.Tool{{Name: "x", Path: "bin/x"}, {Name: "y", Go: "./cmd/y"}, {Name: "z", Deb: "z=1"}},
		}
		return &fleet.Fleet{Services: []*fleet.Service{
			{Name: "d", Pathways: []fleet.Pathway{{Name: "x", Endpoints: []fleet.Endpoint{{URL: "tcp://10.0.0.1:1"}}}, {Name: "y"}}},
			{Name: "doc", Pathways: []fleet.Pathway{{Name: "x", Endpoints: []fleet.Endpoint{{URL: "tcp://10.0.0.2:1"}}}}},
			{Name: "s", Listens: []fleet.Ports{{Protocol: "tcp", First: 1, Last: 1}}},
		}}, r
	}
	sums := map[string]string{}
	digest := func(f *fleet.Fleet, r *fleet.Recipe) string {
		return Digest(f, r, func(path string) string { return sums[path] })
	}
	base := digest(f())
	for name, c := range map[string]struct {
		change func(*fleet.Fleet, *fleet.Recipe)
		same   bool
	}{
		"nothing":               {func(*fleet.Fleet, *fleet.Recipe) {}, true},
		"place":                 {func(_ *fleet.Fleet, r *fleet.Recipe) { r.Pos.Line = 7 }, true},
		"why":                   {func(_ *fleet.Fleet, r *fleet.Recipe) { r.Conditions[0].Why = "x" }, true},
		"documentation":         {func(_ *fleet.Fleet, r *fleet.Recipe) { r.Doc, r.Strategy[0].Step.IfFails = "x", "y" }, true},
		"another pathway":       {func(f *fleet.Fleet, _ *fleet.Recipe) { f.Services[0].Pathways[1].Endpoints = make([]fleet.Endpoint, 1) }, true},
		"script":                {func(_ *fleet.Fleet, r *fleet.Recipe) { r.Strategy[0].Step.Run[0].Text = "stop" }, false},
		"title":                 {func(_ *fleet.Fleet, r *fleet.Recipe) { r.Strategy[0].Step.Title = "x" }, false},
		"endpoint":              {func(f *fleet.Fleet, _ *fleet.Recipe) { f.Services[0].Pathways[0].Endpoints[0].URL = "x" }, false},
		"port":                  {func(f *fleet.Fleet, _ *fleet.Recipe) { f.Services[2].Listens[0].Last = 2 }, false},
		"secret":                {func(_ *fleet.Fleet, r *fleet.Recipe) { r.Secrets[0].Value = "w" }, false},
		"variable called text":  {func(_ *fleet.Fleet, r *fleet.Recipe) { r.Strategy[0].Step.Env["text"] = "b" }, false},
		"service called doc":    {func(f *fleet.Fleet, _ *fleet.Recipe) { f.Services[1].Pathways[0].Endpoints[0].URL = "x" }, false},
		"what a file holds":     {func(*fleet.Fleet, *fleet.Recipe) { sums["p/a"] = "1" }, false},
		"what a secret's holds": {func(*fleet.Fleet, *fleet.Recipe) { sums["p/secret"] = "1" }, false},
		"what a program holds":  {func(*fleet.Fleet, *fleet.Recipe) { sums["bin/x"] = "1" }, false},
		"a program's source":    {func(*fleet.Fleet, *fleet.Recipe) { sums["cmd/y"] = "1" }, false},
		"a file of nobody's":    {func(*fleet.Fleet, *fleet.Recipe) { sums["p/b"] = "1" }, true},
		"a tool's version":      {func(_ *fleet.Fleet, r *fleet.Recipe) { r.Tools[2].Deb = "z=2" }, false},
		"workspace's image":     {func(f *fleet.Fleet, _ *fleet.Recipe) { f.Workspace.Image = &fleet.Image{OCI: "x"} }, false},
	} {
		g, r := f()
		clear(sums)
		c.change(g, r)
		if got := digest(g, r); (got == base) != c.same {
			t.Errorf("%s: same digest %t", name, got == base)
		}
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(`{"schema": "bj.result/1", "recipe": "//p:r", "verdict": "error", "steps": [{"exit": 1}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		x, err := ParseRecord(data)
		if err == nil && x.Schema != RecordSchema {
			t.Errorf("schema %q was read", x.Schema)
		}
	})
}
