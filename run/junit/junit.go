// Package junit makes a JUnit report of a run: a fold over events. A recipe is
// a test case: "not recovered" is a failure, "error" an error.
package junit

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"bj/run/event"
)

// maxOutput bounds what a test case keeps of what its programs printed, in bytes.
const maxOutput = 64 << 10

// Report collects events; the zero value is ready.
type Report struct {
	// File returns the file of a recipe, relative to the workspace; nil: not known.
	File func(label string) string

	mu    sync.Mutex
	cases []*testCase // in the order of their first event
	open  map[string]*testCase
	seen  map[string]int // how often a name was used
	start time.Time
	end   time.Time
}

type suites struct {
	XMLName  xml.Name `xml:"testsuites"`
	Tests    int      `xml:"tests,attr"`
	Failures int      `xml:"failures,attr"`
	Errors   int      `xml:"errors,attr"`
	Time     string   `xml:"time,attr"`
	Suite    suite    `xml:"testsuite"`
}

type suite struct {
	Name      string      `xml:"name,attr"`
	Tests     int         `xml:"tests,attr"`
	Failures  int         `xml:"failures,attr"`
	Errors    int         `xml:"errors,attr"`
	Skipped   int         `xml:"skipped,attr"`
	Time      string      `xml:"time,attr"`
	Timestamp string      `xml:"timestamp,attr,omitempty"`
	Cases     []*testCase `xml:"testcase"`
}

type testCase struct {
	Class   string   `xml:"classname,attr"`
	Name    string   `xml:"name,attr"`
	File    string   `xml:"file,attr,omitempty"`
	Time    string   `xml:"time,attr"`
	Failure *problem `xml:"failure,omitempty"`
	Error   *problem `xml:"error,omitempty"`
	Out     *text    `xml:"system-out,omitempty"`

	label  string
	start  time.Time
	output []byte
}

type problem struct {
	Message string `xml:"message,attr"`
	Type    string `xml:"type,attr"`
	Body    string `xml:",chardata"`
}

type text struct {
	Body string `xml:",chardata"`
}

// Event takes one event; it is an event.Sink.
func (r *Report) Event(e event.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !e.Time.IsZero() {
		if r.start.IsZero() {
			r.start = e.Time
		}
		r.end = e.Time
	}
	if e.Recipe == "" || e.Event == event.Released || e.Event == event.Build {
		return
	}
	c := r.open[e.Recipe]
	if c == nil {
		if e.Event == event.Note && r.seen[e.Recipe] > 0 {
			return // that the environment is kept, after the verdict
		}
		c = r.begin(e)
	}
	switch e.Event {
	case event.StepStarted, event.ValidationStarted:
		c.print(fmt.Sprintf("== %s%s%s\n", e.Step, on(e), phase(e)))
	case event.FaultDone:
		c.print(fmt.Sprintf("== fault: %s%s\n", e.Step, on(e)))
	case event.Note:
		c.print("-- " + e.Text + "\n")
	case event.OutputWritten:
		c.print(e.Text)
	case event.VerdictGiven:
		if e.Supplier == "" && e.Verdict != nil {
			c.judge(e)
			delete(r.open, e.Recipe)
		}
	}
}

func on(e event.Event) string {
	out := ""
	if e.Machine != "" {
		out = " on " + e.Machine
	}
	if e.Supplier != "" {
		out += ", supplier " + e.Supplier
	}
	return out
}

func phase(e event.Event) string {
	if e.Phase == "" {
		return ""
	}
	return " (" + e.Phase + ")"
}

func (r *Report) begin(e event.Event) *testCase {
	class, name, _ := strings.Cut(strings.TrimPrefix(e.Recipe, "//"), ":")
	if class == "" { // the workspace's own folder
		class = "."
	}
	c := &testCase{Class: class, Name: name, label: e.Recipe, start: e.Time}
	if r.seen == nil {
		r.seen, r.open = map[string]int{}, map[string]*testCase{}
	}
	r.seen[e.Recipe]++
	if n := r.seen[e.Recipe]; n > 1 { // equal names would be dropped
		c.Name = fmt.Sprintf("%s (run %d)", name, n)
	}
	if r.File != nil {
		c.File = printable(r.File(e.Recipe))
	}
	r.open[e.Recipe] = c
	r.cases = append(r.cases, c)
	return c
}

// print keeps the end of what is printed.
func (c *testCase) print(s string) {
	if n := len(c.output); strings.HasPrefix(s, "==") && n > 0 && c.output[n-1] != '\n' {
		c.output = append(c.output, '\n')
	}
	c.output = append(c.output, s...)
	if len(c.output) > 2*maxOutput {
		c.output = append(c.output[:0], c.output[len(c.output)-maxOutput:]...)
	}
}

func (c *testCase) judge(e event.Event) {
	v := e.Verdict
	c.Time = seconds(e.Time.Sub(c.start))
	message, _, _ := strings.Cut(v.Reason, "\n")
	p := &problem{Message: printable(message), Body: printable(v.Reason)}
	if v.Hint != "" {
		p.Body += printable("\nhint: " + v.Hint)
	}
	switch v.Verdict {
	case event.Recovered:
	case event.NotRecovered:
		if v.Failed != nil {
			p.Type = v.Failed.Kind
		}
		c.Failure = p
	default:
		p.Type = "error"
		if v.Code != nil {
			p.Type = *v.Code
		}
		c.Error = p
	}
	out := c.output
	if len(out) > maxOutput {
		out = out[len(out)-maxOutput:]
	}
	if len(out) > 0 {
		c.Out = &text{printable(string(out))}
	}
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.3f", d.Seconds()) }

// printable makes text harmless, and replaces what XML 1.0 cannot hold.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == 0xfffe || r == 0xffff {
			return '\uFFFD'
		}
		return r
	}, event.Clean(s))
}

// Write writes the report. A recipe without a verdict is an error: the run was
// cut off.
func (r *Report) Write(w io.Writer) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := suite{Name: "bj", Time: seconds(r.end.Sub(r.start))}
	if !r.start.IsZero() {
		s.Timestamp = r.start.UTC().Format("2006-01-02T15:04:05")
	}
	for _, c := range r.cases {
		if r.open[c.label] == c {
			cut := *c
			cut.Time = seconds(r.end.Sub(c.start))
			cut.Error = &problem{Message: "the run was cut off", Type: "error"}
			c = &cut
		}
		s.Cases = append(s.Cases, c)
		s.Tests++
		if c.Failure != nil {
			s.Failures++
		}
		if c.Error != nil {
			s.Errors++
		}
	}
	all := suites{Tests: s.Tests, Failures: s.Failures, Errors: s.Errors, Time: s.Time, Suite: s}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return fmt.Errorf("writing the JUnit report: %w", err)
	}
	enc := xml.NewEncoder(w)
	enc.Indent("", "  ")
	if err := enc.Encode(all); err != nil {
		return fmt.Errorf("writing the JUnit report: %w", err)
	}
	if _, err := io.WriteString(w, "\n"); err != nil {
		return fmt.Errorf("writing the JUnit report: %w", err)
	}
	return nil
}
