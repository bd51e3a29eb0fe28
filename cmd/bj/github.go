package main

import (
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"bj/run/event"
	"bj/runbook"
)

// maxAnnotations is how many GitHub shows of a step, less the one that counts
// the rest: further ones are dropped without a word.
const maxAnnotations = 9

// maxCell bounds what the summary says of a recipe, in bytes.
const maxCell = 500

// maxAnnotation bounds one annotation, in bytes; GitHub cuts at 4096.
const maxAnnotation = 4000

// annotations is a fold over events that tells GitHub's workflow what did not
// recover: as annotations of the recipes' files, and as the step's summary.
type annotations struct {
	out     io.Writer                                  // of the workflow's commands
	summary string                                     // file; "" for none
	place   func(label string) (file string, line int) // of a recipe

	mu    sync.Mutex
	rows  []string
	count int
}

// Event takes one event; it is an event.Sink.
func (a *annotations) Event(e event.Event) {
	if e.Event != event.VerdictGiven || e.Supplier != "" || e.Verdict == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	first, _, _ := strings.Cut(e.Verdict.Reason, "\n")
	a.rows = append(a.rows, fmt.Sprintf("| %s | `%s` | %s |", e.Verdict.Verdict, e.Recipe, runbook.Words(shorten(first, maxCell))))
	if e.Verdict.Verdict == event.Recovered {
		return
	}
	if a.count++; a.count > maxAnnotations {
		return
	}
	file, line := a.place(e.Recipe)
	fmt.Fprintf(a.out, "::error file=%s,line=%d,title=%s::%s\n", property(file), line, property(e.Verdict.Verdict+" "+e.Recipe), data(shorten(e.Verdict.Reason, maxAnnotation)))
}

// close counts what was not shown, and writes the summary.
func (a *annotations) close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if more := a.count - maxAnnotations; more > 0 {
		fmt.Fprintf(a.out, "::error title=bj::%d more did not recover: the log and the step's summary name them\n", more)
	}
	if a.summary == "" || len(a.rows) == 0 {
		return nil
	}
	f, err := os.OpenFile(a.summary, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("writing the step's summary: %w", err)
	}
	_, err = fmt.Fprintf(f, "| verdict | recipe | why |\n| --- | --- | --- |\n%s\n", strings.Join(a.rows, "\n"))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("writing the step's summary: %w", err)
	}
	return nil
}

// inRepository is how an engine that checked out a repository calls a file of the
// workspace at root: GitHub and GitLab know files by their paths from its top.
func (e *env) inRepository(root, file string) string {
	for _, name := range []string{"GITHUB_WORKSPACE", "CI_PROJECT_DIR"} {
		top := e.getenv(name)
		if top == "" {
			continue
		}
		if rel, err := filepath.Rel(top, root); err == nil && filepath.IsLocal(rel) {
			return path.Join(filepath.ToSlash(rel), file)
		}
	}
	return file
}

// data escapes the text of a workflow's command, and property a property of it.
func data(s string) string {
	return strings.NewReplacer("%", "%25", "\n", "%0A").Replace(event.Clean(s))
}

func property(s string) string {
	return strings.NewReplacer(":", "%3A", ",", "%2C").Replace(data(s))
}

// shorten returns the beginning of s, of at most n bytes in whole characters.
func shorten(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}

// obeyed is what a runner of GitHub takes for a command, wherever it came from:
// two colons that begin a line, or an older form anywhere.
var obeyed = regexp.MustCompile(`(?m)^([ \t]*)::|##\[`)

// disobey spells the beginnings of a workflow's commands otherwise: what a
// program has printed commands nothing.
func disobey(s string) string {
	return obeyed.ReplaceAllStringFunc(s, func(m string) string {
		if m == "##[" {
			return `#\u0023[`
		}
		return strings.TrimSuffix(m, "::") + `\u003a:`
	})
}

// disobedient writes to what a runner reads.
type disobedient struct{ w io.Writer }

func (d disobedient) Write(b []byte) (int, error) {
	_, err := io.WriteString(d.w, disobey(string(b)))
	return len(b), err
}
