package run

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"bj/run/event"
	"bj/sandbox"
)

// Codes of a verdict error that are not of sandbox.
const (
	codeVacuous     = "vacuous"
	codeInterrupted = "interrupted"
	codeLeak        = string(sandbox.CodeLeak)
	codeLease       = string(sandbox.CodeLease)
	codeCondition   = string(sandbox.CodeCondition)
	codeSupply      = string(sandbox.CodeSupply)
	codeLimits      = string(sandbox.CodeLimits)
)

// Kinds of what failed.
const (
	kindStep       = "step"
	kindValidation = "validation"
	kindDaemon     = "daemon"
	kindTimeout    = "timeout"
)

// failure is why a recipe did not recover. With a kind it is the recipe's
// fault; without, the environment's.
type failure struct {
	code    string
	kind    string
	title   string // of the step or validation
	machine string
	unit    string // of its command
	message string // one line
	script  string // what ran
	output  string // the end of what it printed, masked
	hint    string
	since   time.Time // when what failed began
	ended   bool      // its command ended by itself
	// blocked are attempts that were blocked while it ran.
	blocked []event.Blocked
	earlier []event.Blocked // those from before, which may have mattered
}

func (f *failure) Error() string { return f.message }

// verdict returns which of the three it is.
func (f *failure) verdict() string {
	if f.kind != "" {
		return event.NotRecovered
	}
	return event.Errored
}

// asFailure returns the *failure in err's chain, or makes one of an error of
// the environment.
func asFailure(err error, code sandbox.Code) *failure {
	var f *failure
	if errors.As(err, &f) {
		return f
	}
	var e *sandbox.Error
	if errors.As(err, &e) {
		return &failure{code: string(e.Code), message: e.Error(), hint: e.Hint}
	}
	return &failure{code: string(code), message: err.Error()}
}

// stopped returns why ctx was cancelled, as a failure; nil if it was not.
func stopped(ctx context.Context) *failure {
	if ctx.Err() == nil {
		return nil
	}
	var f *failure
	if errors.As(context.Cause(ctx), &f) {
		return f
	}
	return &failure{code: codeInterrupted, message: "interrupted"}
}

// lines of output and bytes of it that a reason shows
const (
	reasonLines = 25
	reasonBytes = 8 << 10
)

// reason writes what a person would ask next: what failed and where, its
// command, the end of its output, what was blocked while it ran, and where to
// look further.
func (f *failure) reason(logs, inside string) string {
	var b strings.Builder
	b.WriteString(f.message)
	block := func(head, text string) {
		if text == "" {
			return
		}
		fmt.Fprintf(&b, "\n  %s:", head)
		for line := range strings.SplitSeq(text, "\n") {
			b.WriteString("\n    " + line)
		}
	}
	block("command", strings.Trim(f.script, "\n"))
	if f.script != "" && f.output == "" {
		b.WriteString("\n  it printed nothing")
	}
	block("end of its output", lastLines(f.output, reasonLines, reasonBytes))
	list := func(head string, attempts []event.Blocked, limit int) {
		if len(attempts) > 1 {
			head += ", the most likely cause first"
		}
		for i, x := range attempts {
			if i == 0 {
				b.WriteString("\n  " + head + ":")
			}
			if i == limit {
				fmt.Fprintf(&b, "\n    and %d more destinations", len(attempts)-i)
				break
			}
			b.WriteString("\n    " + blockedLine(x))
			if i == 0 && len(x.Wider) > 0 {
				b.WriteString("\n      or, wider: " + strings.Join(x.Wider, " or "))
			}
		}
	}
	list("blocked by the seal while it ran", f.blocked, maxBlockedShown)
	if f.kind != "" && !slices.ContainsFunc(f.blocked, func(x event.Blocked) bool { return x.Allow != "" }) {
		list("blocked by the seal before it ran", f.earlier, maxEarlierShown)
	}
	if f.kind != "" {
		if logs != "" {
			fmt.Fprintf(&b, "\n  logs: %s", logs)
		} else {
			b.WriteString("\n  logs: run it again with --report DIR")
		}
		if inside != "" {
			b.WriteString("\n  look inside: " + inside)
		}
	}
	return b.String()
}

// maxBlockedShown bounds how many destinations a reason lists.
const maxBlockedShown = 10

// maxEarlierShown bounds those from before it.
const maxEarlierShown = 3

// blockedLine says in one line what was blocked, who owns it, and what would
// allow it.
func blockedLine(x event.Blocked) string {
	var b strings.Builder
	to := x.Destination.Address
	switch {
	case to == "", x.Protocol == "unix":
	case x.Destination.Port != 0 && strings.Contains(to, ":"):
		to = fmt.Sprintf("[%s]:%d", to, x.Destination.Port)
	case x.Destination.Port != 0:
		to = fmt.Sprintf("%s:%d", to, x.Destination.Port)
	}
	b.WriteString(strings.TrimSpace(x.Protocol + " " + to))
	if x.Destination.Name != nil {
		fmt.Fprintf(&b, " (%s)", *x.Destination.Name)
	}
	if x.Count > 1 {
		fmt.Fprintf(&b, ", %d times", x.Count)
	}
	if p := x.Process; p != nil {
		b.WriteString(", by " + processText(p))
	}
	if x.Service != nil {
		fmt.Fprintf(&b, ": it belongs to %s", *x.Service)
	} else {
		b.WriteString(": no service declares it")
	}
	if x.Allow != "" {
		fmt.Fprintf(&b, "; %s would allow it", x.Allow)
		if c := x.ClosesCycle; c != nil {
			fmt.Fprintf(&b, ", and close a cycle: %s → %s", strings.Join(c, " → "), c[0])
		}
	} else {
		b.WriteString("; no condition can allow it")
	}
	return b.String()
}

// maxArgv bounds what a line shows of a command, in bytes.
const maxArgv = 100

// processText says what a process is: "curl -s http://… (pid 12 of fetch, started
// by: worker)".
func processText(p *event.Process) string {
	text := strings.Join(strings.Fields(strings.Join(p.Argv, " ")), " ")
	if text == "" {
		text = p.Exe
	}
	if text == "" {
		text = "a process that has ended"
	}
	if len(text) > maxArgv {
		text = strings.ToValidUTF8(text[:maxArgv], "") + "…"
	}
	text += fmt.Sprintf(" (pid %d", p.PID)
	if p.Unit != "" {
		text += " of " + p.Unit
	}
	return text + ")"
}
