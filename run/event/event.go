// Package event holds what happens during a run as values: the stream that bj
// test --json writes, and from which terminal, JUnit, reports and runbooks are
// made. It also holds recorded results.
package event

import "time"

// Schema names the stream's format; a change of meaning raises its number.
const Schema = "bj.events/1"

// The names of events, in the order in which a recipe meets them.
const (
	Start              = "start"
	Note               = "note" // words for people about the recipe: production is contacted, limits are missing
	Build              = "build"
	Lease              = "lease"
	Sealed             = "sealed"
	CanaryTried        = "canary"
	StepStarted        = "step_started"
	OutputWritten      = "output"
	StepFinished       = "step_finished"
	FaultDone          = "fault"
	ValidationStarted  = "validation_started"
	ValidationFinished = "validation_finished"
	BlockedSeen        = "blocked"
	UsedCounted        = "used"
	Released           = "released"
	VerdictGiven       = "verdict"
	End                = "end"
)

// Phases of a validation.
const (
	PhaseEmpty   = "empty"
	PhaseBetween = "between"
	PhaseFinal   = "final"
)

// Verdicts.
const (
	Recovered    = "recovered"
	NotRecovered = "not recovered"
	Errored      = "error"
)

// Event is one line of the stream. Event says which of the other fields are
// there; those that follow the common ones belong to the event of that name.
// See MarshalJSON for what is written.
type Event struct {
	Event    string
	Time     time.Time
	Recipe   string
	Supplier string // label of the supplying recipe whose event it is
	Machine  string
	Step     string   // title of the step, validation or fault
	Seconds  *float64 // how long what this event ends has taken

	Schema  string // start
	Version string // start
	// Shard is which part of the recipes a run takes, as "2/4", and Recipes are
	// their labels; start. Both are empty where it takes all.
	Shard   string
	Recipes []string

	Text string // output, note, build; lease: the environment's name

	Stream string // output: stdout or stderr
	Exit   *int   // step_finished: nil while a daemon runs, or if its end is not known; end
	Rules  string // sealed: the packet filter's rules as applied

	Held  *bool  // canary, validation_finished
	Probe string // canary
	Phase string // validation_started, validation_finished

	Blocked *Blocked
	Used    *Used
	Verdict *Verdict
	Totals  *Totals // end
}

// Blocked is the body of a blocked event. Its unknown parts are null.
type Blocked struct {
	Process     *Process    `json:"process"`
	Protocol    string      `json:"protocol"`
	Destination Destination `json:"destination"`
	Service     *string     `json:"service"`
	Pathway     string      `json:"-"`     // of the service
	Endpoint    string      `json:"-"`     // URL of what was wanted; empty where none can name it
	Methods     []string    `json:"-"`     // of HTTP, of what was wanted
	Allow       string      `json:"allow"` // the line that would open it
	// Wider are at most two other lines that would open it, and more.
	Wider       []string  `json:"wider,omitempty"`
	ClosesCycle []string  `json:"closes_cycle"`
	Mattered    *bool     `json:"mattered"` // null until the verdict is known, or where nobody can tell
	Count       int64     `json:"count"`    // since it was told last; 0 where only Mattered is new
	First       time.Time `json:"first,omitzero"`
	Last        time.Time `json:"last,omitzero"`
}

// Process is the process behind a blocked attempt.
type Process struct {
	PID  int      `json:"pid"`
	Exe  string   `json:"exe"`
	Argv []string `json:"argv"`
	Unit string   `json:"unit"`
	// Parents are the command lines of its ancestors, the nearest first.
	Parents []string `json:"parents"`
}

// Destination is where a blocked attempt wanted to go.
type Destination struct {
	Address string  `json:"address"`
	Port    int     `json:"port"`
	Name    *string `json:"name"`
}

// Used is the body of a used event: how often a condition was used.
type Used struct {
	Allow string `json:"allow"`
	File  string `json:"file"`
	Line  int    `json:"line"`
	Count int64  `json:"count"`
	Bytes int64  `json:"bytes"`
}

// Verdict is the body of a verdict event.
type Verdict struct {
	Verdict string   `json:"verdict"`
	Code    *string  `json:"code"`
	Reason  string   `json:"reason"`
	Root    string   `json:"root"`
	Failed  *Failed  `json:"failed"`
	Hint    string   `json:"hint,omitempty"`
	Free    []string `json:"free,omitempty"`   // what came for free
	Except  []string `json:"except,omitempty"` // manual steps that could not be tested
}

// Failed says what failed.
type Failed struct {
	Kind    string `json:"kind"` // step, validation, daemon, timeout
	Title   string `json:"title"`
	Machine string `json:"machine"`
}

// Totals is the body of the end event, with Exit.
type Totals struct {
	Recovered    int `json:"recovered"`
	NotRecovered int `json:"not_recovered"`
	Errors       int `json:"errors"`
}

// Sink takes events in order. It must not block for long, and must not keep
// what an event points to beyond the call without copying.
type Sink func(Event)

// Tee gives each event to all sinks, in order.
func Tee(sinks ...Sink) Sink {
	return func(e Event) {
		for _, s := range sinks {
			s(e)
		}
	}
}
