// Package diag holds positions and diagnostics: what every part of bj says
// when something in a file is wrong.
//
//	Pos         a place in a file, 1-based
//	Frame       one call on the way to it
//	Diagnostic  a mistake: where, what, how to mend it
//	List        all mistakes of one run, sorted, without repeats
//
// Lint, the loader, the graph's checks and an editor all speak Diagnostics.
package diag

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Pos is a place in a file. File is relative to the workspace, with forward
// slashes; Line and Col count from 1, and 0 means not known.
type Pos struct {
	File string `json:"file"`
	Line int    `json:"line"`
	Col  int    `json:"col,omitempty"`
}

// String prints file:line:col, leaving out what is not known.
func (p Pos) String() string {
	switch {
	case p.Line == 0:
		return p.File
	case p.Col == 0:
		return fmt.Sprintf("%s:%d", p.File, p.Line)
	}
	return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Col)
}

// IsValid reports whether p names a file.
func (p Pos) IsValid() bool { return p.File != "" }

// Compare orders positions by file, line and column.
func (p Pos) Compare(q Pos) int {
	return cmp.Or(strings.Compare(p.File, q.File), cmp.Compare(p.Line, q.Line), cmp.Compare(p.Col, q.Col))
}

// Frame is one call of the stack that led to a mistake, the outermost first.
type Frame struct {
	Pos  Pos    `json:"pos"`
	Func string `json:"func"`
}

// Severity says whether a diagnostic stops bj.
type Severity string

const (
	Error   Severity = "error"
	Warning Severity = "warning"
)

// Related is another place that helps to understand a diagnostic, such as the
// first of two declarations of one name.
type Related struct {
	Pos     Pos    `json:"pos"`
	Message string `json:"message"`
}

// Diagnostic is one mistake in a file.
type Diagnostic struct {
	Pos      Pos       `json:"pos"`
	Severity Severity  `json:"severity"`
	Rule     string    `json:"rule,omitempty"`   // stable id, such as "unknown-service"
	Message  string    `json:"message"`          // lower case, one line
	Hint     string    `json:"hint,omitempty"`   // how to mend it
	Source   string    `json:"source,omitempty"` // the line of the file, without its end
	Stack    []Frame   `json:"stack,omitempty"`  // the calls that led there, outermost first, Pos not included
	Related  []Related `json:"related,omitempty"`
}

// List is a set of diagnostics. It is an error if any of them is.
type List []Diagnostic

// Sort orders l by place, then text, and drops repeats.
func (l List) Sort() List {
	slices.SortStableFunc(l, func(a, b Diagnostic) int {
		return cmp.Or(a.Pos.Compare(b.Pos), strings.Compare(a.Message, b.Message))
	})
	return slices.CompactFunc(l, func(a, b Diagnostic) bool {
		return a.Pos == b.Pos && a.Message == b.Message
	})
}

// HasErrors reports whether any diagnostic is an error.
func (l List) HasErrors() bool {
	return slices.ContainsFunc(l, func(d Diagnostic) bool { return d.Severity != Warning })
}

// Err returns l as an error, or nil if no diagnostic in it is one.
func (l List) Err() error {
	if !l.HasErrors() {
		return nil
	}
	return l
}

// Error prints all diagnostics as a person reads them.
func (l List) Error() string {
	var b strings.Builder
	for i, d := range l {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(d.String())
	}
	return b.String()
}

// String prints the diagnostic with its source line, a caret, its stack and its
// hint, without a final newline:
//
//	recipes/zk.star:12:5: error: unknown service "nmaes"
//	  12 |     conditions = [allow("nmaes")],
//	     |                        ^
//	  hint: did you mean "names"?
func (d Diagnostic) String() string {
	var b strings.Builder
	sev := d.Severity
	if sev == "" {
		sev = Error
	}
	if d.Pos.IsValid() {
		fmt.Fprintf(&b, "%s: ", d.Pos)
	}
	fmt.Fprintf(&b, "%s: %s", sev, d.Message)
	if d.Source != "" && d.Pos.Line > 0 {
		num := fmt.Sprint(d.Pos.Line)
		pad := strings.Repeat(" ", len(num))
		fmt.Fprintf(&b, "\n  %s | %s", num, d.Source)
		if d.Pos.Col > 0 {
			fmt.Fprintf(&b, "\n  %s | %s^", pad, caretPad(d.Source, d.Pos.Col))
		}
	}
	for _, f := range slices.Backward(d.Stack) {
		fmt.Fprintf(&b, "\n  called from %s, in %s", f.Pos, f.Func)
	}
	for _, r := range d.Related {
		fmt.Fprintf(&b, "\n  %s: %s", r.Pos, r.Message)
	}
	if d.Hint != "" {
		fmt.Fprintf(&b, "\n  hint: %s", d.Hint)
	}
	return b.String()
}

// caretPad returns the blank space before column col, keeping tabs so that the
// caret stands below its character.
func caretPad(line string, col int) string {
	var b strings.Builder
	for _, r := range line {
		if col--; col < 1 {
			break
		}
		if r != '\t' {
			r = ' '
		}
		b.WriteRune(r)
	}
	return b.String()
}
