package event

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// common is what every event may have, in the order in which it is written.
type common struct {
	Event    string    `json:"event"`
	Time     time.Time `json:"time,omitzero"`
	Recipe   string    `json:"recipe,omitempty"`
	Supplier string    `json:"supplier,omitempty"`
	Machine  string    `json:"machine,omitempty"`
	Step     string    `json:"step,omitempty"`
	Seconds  *float64  `json:"seconds,omitempty"`
}

// The bodies that are no type of their own.
type (
	startBody struct {
		Schema  string   `json:"schema"`
		Version string   `json:"version"`
		Shard   string   `json:"shard,omitempty"`
		Recipes []string `json:"recipes,omitempty"`
	}
	textBody struct {
		Text string `json:"text"`
	}
	leaseBody struct {
		Text string `json:"text,omitempty"`
	}
	sealedBody struct {
		Rules string `json:"rules,omitempty"`
	}
	outputBody struct {
		Stream string `json:"stream"`
		Text   string `json:"text"`
	}
	exitBody struct {
		Exit *int `json:"exit"`
	}
	canaryBody struct {
		Held  *bool  `json:"held"`
		Probe string `json:"probe"`
	}
	phaseBody struct {
		Phase string `json:"phase"`
	}
	heldBody struct {
		Phase string `json:"phase"`
		Held  *bool  `json:"held"`
	}
	endBody struct {
		Exit *int `json:"exit"`
		Totals
	}
)

// body returns what follows the common fields, or nil.
func (e *Event) body() any {
	switch e.Event {
	case Start:
		return startBody{e.Schema, e.Version, e.Shard, e.Recipes}
	case Note, Build:
		return textBody{e.Text}
	case Lease:
		return leaseBody{e.Text}
	case Sealed:
		return sealedBody{e.Rules}
	case OutputWritten:
		return outputBody{e.Stream, e.Text}
	case StepFinished:
		return exitBody{e.Exit}
	case CanaryTried:
		return canaryBody{e.Held, e.Probe}
	case ValidationStarted:
		return phaseBody{e.Phase}
	case ValidationFinished:
		return heldBody{e.Phase, e.Held}
	case BlockedSeen:
		return orZero(e.Blocked)
	case UsedCounted:
		return orZero(e.Used)
	case VerdictGiven:
		return orZero(e.Verdict)
	case End:
		return endBody{e.Exit, orZero(e.Totals)}
	}
	return nil
}

func orZero[T any](p *T) (zero T) {
	if p == nil {
		return zero
	}
	return *p
}

// MarshalJSON writes the common fields that e has, then those of its event: all
// of them, null where nothing is known. Time is in UTC.
func (e Event) MarshalJSON() ([]byte, error) { return Marshal(e) }

// Marshal encodes e as one line, without its end.
func Marshal(e Event) ([]byte, error) {
	c := common{e.Event, e.Time, e.Recipe, e.Supplier, e.Machine, e.Step, e.Seconds}
	if !c.Time.IsZero() {
		c.Time = c.Time.UTC()
	}
	head, err := encode(c)
	if err != nil {
		return nil, err
	}
	body := e.body()
	if body == nil {
		return head, nil
	}
	tail, err := encode(body)
	if err != nil {
		return nil, err
	}
	if len(tail) == 2 { // {}
		return head, nil
	}
	return append(append(head[:len(head)-1], ','), tail[1:]...), nil
}

// encode is json.Marshal for people, who want to read < and & as they are, and
// nothing that their terminal would obey.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return []byte(Clean(strings.TrimSuffix(b.String(), "\n"))), nil
}

// UnmarshalJSON reads what MarshalJSON writes, and ignores fields that it does
// not know. Of an event of unknown name it keeps the common fields.
func (e *Event) UnmarshalJSON(data []byte) error {
	var c common
	if err := json.Unmarshal(data, &c); err != nil {
		return err
	}
	if c.Event == "" {
		return errors.New("an event without a name")
	}
	if !c.Time.IsZero() {
		c.Time = c.Time.UTC()
	}
	*e = Event{Event: c.Event, Time: c.Time, Recipe: c.Recipe, Supplier: c.Supplier, Machine: c.Machine, Step: c.Step, Seconds: c.Seconds}
	switch e.Event {
	case BlockedSeen:
		e.Blocked = new(Blocked)
		return json.Unmarshal(data, e.Blocked)
	case UsedCounted:
		e.Used = new(Used)
		return json.Unmarshal(data, e.Used)
	case VerdictGiven:
		e.Verdict = new(Verdict)
		return json.Unmarshal(data, e.Verdict)
	case End:
		e.Totals = new(Totals)
		if err := json.Unmarshal(data, e.Totals); err != nil {
			return err
		}
	}
	var b struct {
		startBody
		outputBody
		exitBody
		canaryBody
		phaseBody
		sealedBody
	}
	if err := json.Unmarshal(data, &b); err != nil {
		return err
	}
	switch e.Event {
	case Start:
		e.Schema, e.Version, e.Shard, e.Recipes = b.Schema, b.Version, b.Shard, b.Recipes
	case Note, Build, Lease:
		e.Text = b.Text
	case Sealed:
		e.Rules = b.Rules
	case OutputWritten:
		e.Stream, e.Text = b.Stream, b.Text
	case StepFinished, End:
		e.Exit = b.Exit
	case CanaryTried:
		e.Held, e.Probe = b.Held, b.Probe
	case ValidationStarted:
		e.Phase = b.Phase
	case ValidationFinished:
		e.Phase, e.Held = b.Phase, b.Held
	}
	return nil
}

// ErrCut says that a stream has no end event: what wrote it died, or was cut off.
var ErrCut = errors.New("the event stream was cut off: it has no end event")

// maxLine bounds a line of the stream, in bytes.
const maxLine = 64 << 20

// Decoder reads a stream of events.
type Decoder struct {
	r       *bufio.Reader
	line    int
	started bool
	ended   bool
}

// NewDecoder returns a decoder that reads from r.
func NewDecoder(r io.Reader) *Decoder { return &Decoder{r: bufio.NewReaderSize(r, 64<<10)} }

// Next returns the next event: the first is start, the last is end, and then
// comes io.EOF. A stream without end gives ErrCut, one of a newer schema an
// error that says so.
func (d *Decoder) Next() (Event, error) {
	text, err := d.readLine()
	if err == io.EOF && !d.ended {
		return Event{}, ErrCut
	}
	if err != nil {
		return Event{}, err
	}
	if d.ended {
		return Event{}, fmt.Errorf("line %d: something follows the end event", d.line)
	}
	var e Event
	if err := json.Unmarshal(text, &e); err != nil {
		return Event{}, fmt.Errorf("line %d: reading an event: %w", d.line, err)
	}
	switch {
	case !d.started && e.Event != Start:
		return Event{}, fmt.Errorf("line %d: not a stream of events: it begins with %q, not %q", d.line, e.Event, Start)
	case !d.started:
		if err := checkSchema(e.Schema, Schema); err != nil {
			return Event{}, err
		}
		d.started = true
	case e.Event == Start:
		return Event{}, fmt.Errorf("line %d: a second start event", d.line)
	}
	d.ended = e.Event == End
	return e, nil
}

// readLine returns the next line that is not blank; a last line without its end
// was cut off, and counts as none.
func (d *Decoder) readLine() ([]byte, error) {
	for {
		d.line++
		var text []byte
		for {
			part, err := d.r.ReadSlice('\n')
			if len(text)+len(part) > maxLine {
				return nil, fmt.Errorf("line %d: longer than %d bytes", d.line, maxLine)
			}
			text = append(text, part...)
			if err == nil {
				break
			}
			if err != bufio.ErrBufferFull {
				return nil, err
			}
		}
		if len(bytes.TrimSpace(text)) > 0 {
			return text, nil
		}
	}
}

// checkSchema refuses a schema of another name or of a higher number than ours.
func checkSchema(got, ours string) error {
	name, number, _ := strings.Cut(ours, "/")
	gotName, gotNumber, ok := strings.Cut(got, "/")
	n, err := strconv.Atoi(gotNumber)
	if !ok || err != nil || n < 1 || gotName != name {
		return fmt.Errorf("not %s: its schema is %q", ours, got)
	}
	if max, _ := strconv.Atoi(number); n > max {
		return fmt.Errorf("written by a newer bj: its schema is %s, this bj reads up to %s", got, ours)
	}
	return nil
}
