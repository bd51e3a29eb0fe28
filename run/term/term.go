// Package term shows a run to a person: a fold over events.
//
//	Terminal   takes events; results go to Out, progress to Err
//
// On a terminal there is a live line for each running recipe, with finished ones
// above it; elsewhere a plain line for each event that matters.
package term

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"bj/run/event"
)

// Options says where and how a run is shown.
type Options struct {
	Out io.Writer // results
	Err io.Writer // progress
	// Live draws a line for each running recipe on Err, which must be a
	// terminal that understands escape sequences.
	Live  bool
	Color bool
	Width func() int // of the terminal, in columns; 80 if nil
	// Steps returns how many steps, validations and faults a recipe has; 0 or
	// nil: not known.
	Steps func(label string) int
	// Every is how often live lines are drawn anew; 100 ms if 0.
	Every time.Duration
}

// Terminal shows events. Its owner calls Close.
type Terminal struct {
	o     Options
	mu    sync.Mutex
	runs  []*progress // that go on, in the order in which they began
	drawn int         // live lines that stand on the terminal
	// judged are the recipes whose verdict was given, until they run again.
	judged map[string]bool
	stop   chan struct{}
	done   sync.WaitGroup
}

// progress is what is known of a running recipe.
type progress struct {
	label    string
	start    time.Time
	phase    string
	title    string // of the step that runs
	k        int    // which it is, from 1
	blocked  int64
	unmissed []string // destinations that were blocked, in order
	unused   []string // conditions that were never used
	canaries int
}

// New returns a Terminal.
func New(o Options) *Terminal {
	t := &Terminal{o: o, judged: map[string]bool{}, stop: make(chan struct{})}
	if o.Live {
		every := o.Every
		if every == 0 {
			every = 100 * time.Millisecond
		}
		t.done.Go(func() { t.animate(every) })
	}
	return t
}

func (t *Terminal) animate(every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-t.stop:
			return
		case now := <-tick.C:
			t.mu.Lock()
			t.redraw(nil, now)
			t.mu.Unlock()
		}
	}
}

// Close removes live lines, and ends what draws them.
func (t *Terminal) Close() {
	close(t.stop)
	t.done.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.runs = nil
	t.redraw(nil, time.Time{})
}

// Say writes a line of progress above the live lines.
func (t *Terminal) Say(line string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.redraw(func() { fmt.Fprintln(t.o.Err, event.Clean(line)) }, time.Now())
}

// Event takes one event; it is an event.Sink.
func (t *Terminal) Event(e event.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch e.Event {
	case event.Start:
		return
	case event.End:
		t.redraw(func() { fmt.Fprintln(t.o.Out, t.summary(e)) }, e.Time)
		return
	}
	if e.Recipe == "" {
		return
	}
	p := t.find(e)
	known := len(p.unmissed)
	switch {
	case e.Event == event.Build:
		p.phase, p.title = "tools", e.Text
	case p.phase == "tools":
		p.start, p.phase, p.title = e.Time, "starting", "" // tools are made before it has its turn
	}
	if e.Supplier == "" {
		p.add(e)
	} else if e.Event == event.Lease || e.Event == event.StepStarted {
		p.phase = "supplier " + e.Supplier
		p.title = e.Step
	}
	if e.Event == event.VerdictGiven && e.Verdict != nil && e.Supplier == "" {
		t.judged[e.Recipe] = true
		t.runs = slices.DeleteFunc(t.runs, func(q *progress) bool { return q == p })
		t.redraw(func() { io.WriteString(t.o.Out, t.result(p, e)) }, e.Time)
		return
	}
	line := line(e)
	if e.Event == event.BlockedSeen && e.Supplier == "" && len(p.unmissed) == known { // said before
		line = ""
	}
	if line == "" || (t.o.Live && e.Event != event.Note) {
		return
	}
	t.redraw(func() { fmt.Fprintln(t.o.Err, line) }, e.Time)
}

// find returns the progress of the event's recipe.
func (t *Terminal) find(e event.Event) *progress {
	for _, p := range t.runs {
		if p.label == e.Recipe {
			return p
		}
	}
	p := &progress{label: e.Recipe, start: e.Time, phase: "starting"}
	if t.judged[e.Recipe] && (e.Event == event.Released || e.Event == event.Note) {
		return p // its environment was kept after the verdict
	}
	delete(t.judged, e.Recipe)
	t.runs = append(t.runs, p)
	return p
}

// add takes an event of the recipe itself.
func (p *progress) add(e event.Event) {
	next := func(title string) {
		p.phase = "step"
		if p.title != title {
			p.k++
		}
		p.title = title
	}
	switch e.Event {
	case event.Lease:
		p.phase, p.title = "sealing", ""
	case event.Sealed:
		p.phase, p.title = "trying the seal", ""
	case event.CanaryTried:
		p.canaries++
	case event.StepStarted:
		next(e.Step)
	case event.FaultDone:
		next(e.Step)
	case event.ValidationStarted:
		if e.Phase == event.PhaseEmpty {
			p.phase, p.title = "validations on empty hardware", ""
			return
		}
		next(e.Step)
	case event.BlockedSeen:
		if e.Blocked == nil {
			return
		}
		p.blocked += e.Blocked.Count
		if to := Destination(*e.Blocked); !slices.Contains(p.unmissed, to) {
			p.unmissed = append(p.unmissed, to)
		}
	case event.UsedCounted:
		if e.Used != nil && e.Used.Count == 0 {
			p.unused = append(p.unused, fmt.Sprintf("%s (%s:%d)", e.Used.Allow, e.Used.File, e.Used.Line))
		}
	}
}

// Destination writes where a blocked attempt wanted to go: "tcp 10.0.0.1:443".
func Destination(b event.Blocked) string {
	to := b.Destination.Address
	if b.Destination.Port != 0 {
		if strings.Contains(to, ":") {
			to = "[" + to + "]"
		}
		to = fmt.Sprintf("%s:%d", to, b.Destination.Port)
	}
	return strings.TrimSpace(b.Protocol + " " + to)
}

// line is the plain line of an event; empty if it does not matter.
func line(e event.Event) string {
	who := e.Recipe
	if e.Supplier != "" {
		who += ": supplier " + e.Supplier
	}
	on := ""
	if e.Machine != "" {
		on = " on " + e.Machine
	}
	took := ""
	if e.Seconds != nil {
		took = " (" + Seconds(*e.Seconds) + ")"
	}
	say := func(format string, args ...any) string {
		return event.Clean(who + ": " + fmt.Sprintf(format, args...))
	}
	switch e.Event {
	case event.Note:
		text, _, _ := strings.Cut(e.Text, "\n")
		return say("%s", text)
	case event.Build:
		return say("%s", e.Text)
	case event.Lease:
		return say("machines leased%s", took)
	case event.Sealed:
		return say("sealed%s", took)
	case event.CanaryTried:
		if e.Held != nil && !*e.Held {
			return say("the seal leaks%s: %s", on, e.Probe)
		}
	case event.StepFinished:
		if e.Exit != nil && *e.Exit != 0 {
			return say("step %q%s: exit code %d%s", e.Step, on, *e.Exit, took)
		}
		return say("step %q%s%s", e.Step, on, took)
	case event.FaultDone:
		return say("fault %q%s%s", e.Step, on, took)
	case event.ValidationFinished:
		switch held := e.Held != nil && *e.Held; {
		case e.Phase == event.PhaseEmpty && held:
			return say("validation %q holds on empty hardware%s", e.Step, took)
		case e.Phase == event.PhaseEmpty:
		case held:
			return say("validation %q holds%s", e.Step, took)
		default:
			return say("validation %q does not hold%s", e.Step, took)
		}
	case event.BlockedSeen:
		if e.Blocked != nil {
			return say("blocked%s: %s", on, Destination(*e.Blocked))
		}
	}
	return ""
}

// Seconds writes a duration as people read it: 0.3s, 12.3s, 2m05s.
func Seconds(s float64) string {
	switch {
	case s < 0.0995:
		return fmt.Sprintf("%.0fms", s*1000)
	case s < 59.95:
		return fmt.Sprintf("%.1fs", s)
	}
	n := int(s + 0.5)
	if n < 3600 {
		return fmt.Sprintf("%dm%02ds", n/60, n%60)
	}
	return fmt.Sprintf("%dh%02dm%02ds", n/3600, n/60%60, n%60)
}

// result is what is said of a recipe at its end.
func (t *Terminal) result(p *progress, e event.Event) string {
	v := e.Verdict
	head, color := v.Verdict, yellow
	switch v.Verdict {
	case event.Recovered:
		color = green
	case event.NotRecovered:
		color = red
	}
	if v.Code != nil {
		head += " (" + *v.Code + ")"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s  %s  %s\n", t.paint(color, head), event.Clean(e.Recipe), Seconds(e.Time.Sub(p.start).Seconds()))
	indent := func(text string) {
		for l := range strings.SplitSeq(event.Clean(text), "\n") {
			b.WriteString("  " + l + "\n")
		}
	}
	if v.Reason != "" {
		indent(v.Reason)
	}
	if v.Hint != "" {
		indent("hint: " + v.Hint)
	}
	if v.Verdict == event.Recovered {
		indent("proven on " + v.Root)
		if len(v.Free) > 0 {
			indent("for free: " + strings.Join(brief(v.Free), "; "))
		}
		if len(p.unmissed) > 0 {
			indent("blocked and tolerated: " + some(p.unmissed, 5))
		}
	}
	if len(p.unused) > 0 && v.Verdict != event.Errored {
		indent("never used: " + some(p.unused, 5))
	}
	return b.String()
}

// brief says what came for free in one line: tools and files by name, all of a
// kind together. The event has versions and digests.
func brief(free []string) []string {
	var out []string
	at := map[string]int{}
	for _, item := range free {
		kind, rest, _ := strings.Cut(item, " ")
		if kind != "tool" && kind != "file" {
			out = append(out, item)
			continue
		}
		name, _, _ := strings.Cut(rest, ": ")
		if i, ok := at[kind]; ok {
			out[i] = strings.Replace(out[i], kind+" ", kind+"s ", 1) + ", " + name
			continue
		}
		at[kind] = len(out)
		out = append(out, kind+" "+name)
	}
	return out
}

// some lists at most n of list.
func some(list []string, n int) string {
	if len(list) > n {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:n], ", "), len(list)-n)
	}
	return strings.Join(list, ", ")
}

// summary is the last line.
func (t *Terminal) summary(e event.Event) string {
	if e.Totals == nil {
		return ""
	}
	errors := "errors"
	if e.Totals.Errors == 1 {
		errors = "error"
	}
	return fmt.Sprintf("%d recovered, %d not recovered, %d %s", e.Totals.Recovered, e.Totals.NotRecovered, e.Totals.Errors, errors)
}

// Escape sequences, of which no others are written.
const (
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	plain  = "\x1b[0m"
	up     = "\x1b[%dA\r" // and to the first column
	clear  = "\x1b[J"     // to the end of the screen
)

func (t *Terminal) paint(color, s string) string {
	if !t.o.Color {
		return s
	}
	return color + s + plain
}

// maxLive bounds how many live lines there are.
const maxLive = 16

// redraw removes the live lines, lets print write above them, and draws them
// as they are now.
func (t *Terminal) redraw(print func(), now time.Time) {
	var b strings.Builder
	if t.drawn > 0 {
		fmt.Fprintf(&b, up+clear, t.drawn)
		t.drawn = 0
	}
	if print != nil {
		io.WriteString(t.o.Err, b.String())
		b.Reset()
		print()
	}
	if t.o.Live {
		t.frame(&b, now)
	}
	io.WriteString(t.o.Err, b.String()) // at once, so that nothing flickers
}

// frame writes the live lines.
func (t *Terminal) frame(b *strings.Builder, now time.Time) {
	width := 80
	if t.o.Width != nil {
		if w := t.o.Width(); w > 0 {
			width = w
		}
	}
	for i, p := range t.runs {
		t.drawn++
		if i == maxLive {
			fmt.Fprintf(b, "and %d more\n", len(t.runs)-i)
			return
		}
		b.WriteString(t.live(p, now, width) + "\n")
	}
}

// live is the line of a running recipe, at most width columns.
func (t *Terminal) live(p *progress, now time.Time, width int) string {
	what := p.phase
	if p.phase == "step" {
		what = fmt.Sprintf("step %d", p.k)
		if t.o.Steps != nil {
			if n := t.o.Steps(p.label); n >= p.k {
				what = fmt.Sprintf("step %d of %d", p.k, n)
			}
		}
	}
	if p.title != "" {
		what += ": " + p.title
	}
	text := fmt.Sprintf("%s  %s", Seconds(max(0, now.Sub(p.start).Seconds())), what)
	if p.blocked > 0 {
		text = fmt.Sprintf("%s  %d blocked  %s", Seconds(max(0, now.Sub(p.start).Seconds())), p.blocked, what)
	}
	text = strings.ReplaceAll(event.Clean(p.label+"  "+text), "\n", " ")
	if utf8.RuneCountInString(text) >= width {
		text = string([]rune(text)[:max(0, width-2)]) + "…"
	}
	return text
}
