package event

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// RecordSchema names the format of recorded runs.
const RecordSchema = "bj.result/1"

// maxRecordedOutput bounds what a record keeps of what a step printed, in bytes.
const maxRecordedOutput = 4 << 10

// Record is what is kept of one run of one recipe, for the graph, runbooks and
// bj history.
type Record struct {
	Schema  string `json:"schema"`
	Recipe  string `json:"recipe"` // label
	Digest  string `json:"digest"` // of what went in: see Digest
	Version string `json:"version"`
	// Revision is the commit of the workspace, with a + where files differed
	// from it; empty where it is under no version control.
	Revision string `json:"revision,omitempty"`
	Sandbox  string `json:"sandbox,omitempty"` // the provider
	// Given are the recipe's tools in whose place the run had another program.
	Given []string  `json:"given,omitempty"`
	Start time.Time `json:"start"`
	End   time.Time `json:"end"`
	Verdict
	Steps   []StepRecord `json:"steps"`   // steps, validations between and after them, and faults, in order
	Blocked []Blocked    `json:"blocked"` // by destination
	Used    []Used       `json:"used"`    // one for each condition
}

// StepRecord is one step, validation or fault on one machine; a validation has
// none.
type StepRecord struct {
	Title   string  `json:"title"`
	Machine string  `json:"machine,omitempty"`
	Seconds float64 `json:"seconds"`
	Exit    *int    `json:"exit"`
	Held    *bool   `json:"held,omitempty"`   // of a validation
	Output  string  `json:"output,omitempty"` // the end of what it printed; of a daemon, until it was up

	over bool // what is printed later is no part of it
}

// Conclusive reports whether x says something of the recipe. An error is of
// the environment in which it ran, but for what is vacuous, which is so by the
// recipe's own doing; a run with another program in a tool's place is about that
// program.
func (x *Record) Conclusive() bool {
	vacuous := x.Verdict.Code != nil && *x.Verdict.Code == "vacuous"
	return len(x.Given) == 0 && (x.Verdict.Verdict != Errored || vacuous)
}

// Origin is what a record says of a run beside what happened in it.
type Origin struct {
	Digest   func(label string) string   // of a recipe; nil: there is none
	Given    func(label string) []string // see Record; nil: none
	Revision string
	Sandbox  string
}

// Recorder makes a Record of each recipe's run, and writes it when the verdict
// is given. It is a fold over events.
type Recorder struct {
	Origin
	// Dir is the folder of results; nothing is written if it is empty.
	Dir string
	// Done takes each record, if it is set.
	Done func(Record)

	mu      sync.Mutex
	version string
	open    map[string]*Record
	err     error
}

// Event takes one event; it is a Sink. Events of suppliers are not recorded.
func (r *Recorder) Event(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.Event == Start {
		r.version = e.Version
	}
	if e.Recipe == "" || e.Supplier != "" {
		return
	}
	x := r.open[e.Recipe]
	if x == nil {
		if e.Event == Released || e.Event == Build { // after the verdict; before the run
			return
		}
		x = &Record{Schema: RecordSchema, Recipe: e.Recipe, Version: r.version, Start: e.Time, Steps: []StepRecord{}, Blocked: []Blocked{}, Used: []Used{}}
		if r.Digest != nil {
			x.Digest = r.Digest(e.Recipe)
		}
		if r.Given != nil {
			x.Given = r.Given(e.Recipe)
		}
		x.Revision, x.Sandbox = r.Revision, r.Sandbox
		if r.open == nil {
			r.open = map[string]*Record{}
		}
		r.open[e.Recipe] = x
	}
	x.add(e)
	if e.Event != VerdictGiven {
		return
	}
	delete(r.open, e.Recipe)
	x.End = e.Time
	for i := range x.Steps {
		x.Steps[i].Output = lastBytes(x.Steps[i].Output)
	}
	if r.Dir != "" {
		if err := x.Write(r.Dir); err != nil && r.err == nil {
			r.err = fmt.Errorf("recording the run of %s: %w", e.Recipe, err)
		}
	}
	if r.Done != nil {
		r.Done(*x)
	}
}

// Err returns the first error of writing.
func (r *Recorder) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

func (x *Record) add(e Event) {
	last := func() *StepRecord {
		for i := len(x.Steps) - 1; i >= 0; i-- {
			if x.Steps[i].Title == e.Step && (x.Steps[i].Machine == e.Machine || x.Steps[i].Machine == "") {
				return &x.Steps[i]
			}
		}
		return &StepRecord{} // of something that is not recorded
	}
	var took float64
	if e.Seconds != nil {
		took = *e.Seconds
	}
	switch e.Event {
	case StepStarted, FaultDone:
		x.Steps = append(x.Steps, StepRecord{Title: e.Step, Machine: e.Machine, Seconds: took})
	case StepFinished:
		s := last()
		s.Seconds, s.Exit, s.over = took, e.Exit, true
	case ValidationStarted:
		if e.Phase != PhaseEmpty {
			x.Steps = append(x.Steps, StepRecord{Title: e.Step})
		}
	case ValidationFinished:
		if e.Phase != PhaseEmpty {
			s := last()
			s.Seconds, s.Held = took, e.Held
		}
	case OutputWritten:
		s := last()
		if s.over {
			return
		}
		s.Output += e.Text
		if len(s.Output) > 16*maxRecordedOutput {
			s.Output = lastBytes(s.Output)
		}
	case BlockedSeen:
		if e.Blocked == nil {
			return
		}
		same := func(b Blocked) bool {
			return b.Protocol == e.Blocked.Protocol && b.Destination.Address == e.Blocked.Destination.Address && b.Destination.Port == e.Blocked.Destination.Port
		}
		if i := slices.IndexFunc(x.Blocked, same); i >= 0 {
			x.Blocked[i].Count += e.Blocked.Count
			if e.Blocked.Mattered != nil && (x.Blocked[i].Mattered == nil || *e.Blocked.Mattered) {
				x.Blocked[i].Mattered = e.Blocked.Mattered
			}
			return
		}
		x.Blocked = append(x.Blocked, *e.Blocked)
	case UsedCounted:
		if e.Used != nil {
			x.Used = append(x.Used, *e.Used)
		}
	case VerdictGiven:
		if e.Verdict != nil {
			x.Verdict = *e.Verdict
		}
	}
}

// lastBytes returns the end of s, at most maxRecordedOutput bytes in whole runes.
func lastBytes(s string) string {
	if len(s) <= maxRecordedOutput {
		return s
	}
	s = s[len(s)-maxRecordedOutput:]
	for len(s) > 0 && !utf8.RuneStart(s[0]) {
		s = s[1:]
	}
	return s
}

// Write puts x into a file of its own below dir: DIR/LABEL/TIME.json. Any
// number of bj may write at once.
func (x *Record) Write(dir string) error {
	data, err := json.MarshalIndent(x, "", "  ")
	if err != nil {
		return err
	}
	dir = filepath.Join(dir, SafeName(x.Recipe))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for n := 0; ; n++ {
		path := filepath.Join(dir, fmt.Sprintf("%s-%d-%d.json", x.Start.UTC().Format("20060102T150405.000Z"), os.Getpid(), n))
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			return WriteFile(path, []byte(Clean(string(data))+"\n"))
		}
	}
}

// Records returns the recorded runs of a recipe below dir, the oldest first.
// Files that are no records of this or an older bj are left out, and said.
func Records(dir, label string) ([]Record, error) {
	dir = filepath.Join(dir, SafeName(label))
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading results: %w", err)
	}
	var records []Record
	var errs []error
	for _, f := range files {
		if f.IsDir() || strings.HasPrefix(f.Name(), ".") || filepath.Ext(f.Name()) != ".json" {
			continue
		}
		path := filepath.Join(dir, f.Name())
		x, err := readRecord(path)
		if err == nil && x.Recipe != label {
			err = fmt.Errorf("it is of %q", x.Recipe)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("reading the result %s: %w", path, err))
			continue
		}
		records = append(records, x)
	}
	slices.SortStableFunc(records, func(a, b Record) int { return cmp.Or(a.Start.Compare(b.Start), a.End.Compare(b.End)) })
	return records, errors.Join(errs...)
}

func readRecord(path string) (Record, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Record{}, err
	}
	return ParseRecord(data)
}

// ParseRecord reads one record; it refuses one of a newer schema.
func ParseRecord(data []byte) (Record, error) {
	var x Record
	if err := json.Unmarshal(data, &x); err != nil {
		return Record{}, err
	}
	return x, checkSchema(x.Schema, RecordSchema)
}
