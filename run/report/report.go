// Package report writes a folder for each recipe of a run: a fold over events.
//
//	DIR/events.jsonl                       the whole stream
//	DIR/<recipe>/events.jsonl              the recipe's part of it, a stream of its own
//	DIR/<recipe>/result.json               what bj records of the run
//	DIR/<recipe>/rules.nft                 the packet filter's rules as applied
//	DIR/<recipe>/logs/<machine>/NN-step.log   what a step printed there
//
// <recipe> is event.SafeName of its label; the second run of a recipe has "~2"
// behind it. What a supplier does is in <recipe>/suppliers/<supplier>/.
package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"bj/run/event"
)

// Report writes a folder. Its owner calls Close.
type Report struct {
	dir      string
	recorder event.Recorder

	mu    sync.Mutex
	all   *os.File
	start event.Event
	open  map[string]*folder // of recipes that run
	runs  map[string]int
	last  map[string]string // label → folder of its newest run
	err   error
}

// New returns a Report that writes into dir, which is made.
func New(dir string, origin event.Origin) (*Report, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("making the report's folder: %w", err)
	}
	f, err := os.Create(filepath.Join(dir, "events.jsonl"))
	if err != nil {
		return nil, fmt.Errorf("making the report: %w", err)
	}
	r := &Report{dir: dir, all: f, open: map[string]*folder{}, runs: map[string]int{}, last: map[string]string{}}
	r.recorder = event.Recorder{Origin: origin, Done: func(x event.Record) {
		if f := r.open[x.Recipe]; f != nil {
			f.record = &x
		}
	}}
	return r, nil
}

// Path returns where what belongs to a recipe is written. While the recipe
// runs it is the folder of that run.
func (r *Report) Path(label string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.last[label]; p != "" {
		return p
	}
	return filepath.Join(r.dir, event.SafeName(label))
}

// Event takes one event; it is an event.Sink. The first error ends the report.
func (r *Report) Event(e event.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.err = r.add(e)
	}
}

func (r *Report) add(e event.Event) error {
	line, err := event.Marshal(e)
	if err != nil {
		return err
	}
	line = append(line, '\n')
	if _, err := r.all.Write(line); err != nil {
		return err
	}
	if e.Event == event.Start {
		r.start = e
	}
	if e.Recipe == "" {
		r.recorder.Event(e)
		return nil
	}
	f := r.open[e.Recipe]
	if f == nil {
		if r.runs[e.Recipe] > 0 && (e.Event == event.Released || e.Event == event.Note) {
			return nil // of a kept environment, after the verdict
		}
		if f, err = r.begin(e.Recipe); err != nil {
			return err
		}
	}
	r.recorder.Event(e)
	if err := f.add(e, line); err != nil {
		return err
	}
	if e.Event == event.VerdictGiven && e.Supplier == "" {
		delete(r.open, e.Recipe)
		return f.finish(e)
	}
	return nil
}

func (r *Report) begin(label string) (*folder, error) {
	name := event.SafeName(label)
	r.runs[label]++
	if n := r.runs[label]; n > 1 {
		name = fmt.Sprintf("%s~%d", name, n)
	}
	dir := filepath.Join(r.dir, name)
	if err := os.RemoveAll(dir); err != nil { // of an earlier report
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	events, err := os.Create(filepath.Join(dir, "events.jsonl"))
	if err != nil {
		return nil, err
	}
	f := &folder{dir: dir, events: events, logs: map[logKey]*os.File{}, numbers: map[string]int{}}
	r.open[label], r.last[label] = f, dir
	line, err := event.Marshal(r.start)
	if err == nil {
		_, err = events.Write(append(line, '\n'))
	}
	return f, err
}

// Close ends the report. Folders of recipes without a verdict stay as they are:
// their streams have no end.
func (r *Report) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	errs := []error{r.err, r.all.Close()}
	for _, f := range r.open {
		errs = append(errs, f.close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	return nil
}

// folder is what is written of one recipe.
type folder struct {
	dir     string
	events  *os.File
	record  *event.Record
	logs    map[logKey]*os.File
	numbers map[string]int // of steps, by supplier and title, in order of first sight
}

type logKey struct{ supplier, machine, step string }

func (f *folder) add(e event.Event, line []byte) error {
	if _, err := f.events.Write(line); err != nil {
		return err
	}
	switch e.Event {
	case event.Sealed:
		if e.Rules == "" {
			return nil
		}
		dir, err := f.base(e.Supplier)
		if err != nil {
			return err
		}
		return event.WriteFile(filepath.Join(dir, "rules.nft"), []byte(e.Rules))
	case event.StepStarted:
		f.number(e)
	case event.ValidationStarted:
		if e.Phase != event.PhaseEmpty {
			f.number(e)
		}
	case event.OutputWritten:
		return f.log(e)
	}
	return nil
}

// base returns the folder of the recipe, or of one of its suppliers.
func (f *folder) base(supplier string) (string, error) {
	if supplier == "" {
		return f.dir, nil
	}
	dir := filepath.Join(f.dir, "suppliers", event.SafeName(supplier))
	return dir, os.MkdirAll(dir, 0o755)
}

// number returns the number of the event's step among those of its recipe.
func (f *folder) number(e event.Event) int {
	key := e.Supplier + "\x00" + e.Step
	if n, ok := f.numbers[key]; ok {
		return n
	}
	n := 1
	for k := range f.numbers {
		if strings.HasPrefix(k, e.Supplier+"\x00") {
			n++
		}
	}
	f.numbers[key] = n
	return n
}

func (f *folder) log(e event.Event) error {
	key := logKey{e.Supplier, e.Machine, e.Step}
	file := f.logs[key]
	if file == nil {
		dir, err := f.base(e.Supplier)
		if err != nil {
			return err
		}
		machine := e.Machine
		if machine == "" {
			machine = "all"
		}
		dir = filepath.Join(dir, "logs", event.SafeName(machine))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		file, err = os.Create(filepath.Join(dir, fmt.Sprintf("%02d-%s.log", f.number(e), slug(e.Step))))
		if err != nil {
			return err
		}
		f.logs[key] = file
	}
	_, err := io.WriteString(file, e.Text)
	return err
}

// slug makes the name of a file of a title.
func slug(title string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(title) {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			b.WriteRune(r)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
		if b.Len() >= 60 {
			break
		}
	}
	if s := strings.Trim(b.String(), "-"); s != "" {
		return s
	}
	return "step"
}

// finish ends the recipe's stream, and writes its result.
func (f *folder) finish(e event.Event) error {
	var t event.Totals
	exit := 3
	switch e.Verdict.Verdict {
	case event.Recovered:
		t.Recovered, exit = 1, 0
	case event.NotRecovered:
		t.NotRecovered, exit = 1, 1
	default:
		t.Errors = 1
	}
	line, err := event.Marshal(event.Event{Event: event.End, Time: e.Time, Exit: &exit, Totals: &t})
	if err == nil {
		_, err = f.events.Write(append(line, '\n'))
	}
	if err == nil && f.record != nil {
		var data []byte
		if data, err = json.MarshalIndent(f.record, "", "  "); err == nil {
			err = event.WriteFile(filepath.Join(f.dir, "result.json"), append(data, '\n'))
		}
	}
	return errors.Join(err, f.close())
}

func (f *folder) close() error {
	errs := []error{f.events.Close()}
	for _, l := range f.logs {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}
