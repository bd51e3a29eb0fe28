package main

import (
	"errors"
	"fmt"
	"strings"

	"bj/lang/diag"
	"bj/sandbox"
)

// Exit codes. Where several apply the order is 130, 2, 4, 1, 3.
const (
	exitOK           = 0   // everything recovered, or there was nothing to do
	exitNotRecovered = 1   // at least one did not recover; fmt --check or lint found something
	exitUsage        = 2   // usage, or a mistake in a .star file
	exitError        = 3   // an environment, this machine or bj itself is at fault
	exitNothing      = 4   // a pattern matched nothing, or only manual recipes
	exitInterrupted  = 130 // Ctrl-C, SIGTERM
)

// failure is an error with its exit code and what mends it.
type failure struct {
	code int
	err  error // nil where everything was said already
	hint string
}

func (f *failure) Error() string {
	if f.err == nil {
		return fmt.Sprintf("exit %d", f.code)
	}
	return f.err.Error()
}

func (f *failure) Unwrap() error { return f.err }

// exit is the error of a command that has said all there is to say.
func exit(code int) error {
	if code == exitOK {
		return nil
	}
	return &failure{code: code}
}

// usage is a mistake in the command's arguments.
func usage(hint, format string, args ...any) error {
	return &failure{code: exitUsage, err: fmt.Errorf(format, args...), hint: hint}
}

// nothing says that there is nothing to run.
func nothing(hint, format string, args ...any) error {
	return &failure{code: exitNothing, err: fmt.Errorf(format, args...), hint: hint}
}

// withHint adds what mends err.
func withHint(err error, hint string) error {
	return &failure{code: exitCode(err), err: err, hint: hint}
}

// exitCode is the one place where an error becomes an exit code.
func exitCode(err error) int {
	var f *failure
	var mistakes diag.List
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &f):
		return f.code
	case errors.As(err, &mistakes):
		return exitUsage
	case errors.Is(err, errInterrupted):
		return exitInterrupted
	}
	return exitError
}

// report says what err is, and returns its exit code.
func (e *env) report(err error) int {
	code := exitCode(err)
	var (
		f        *failure
		mistakes diag.List
		fault    *sandbox.Error
		hint     string
	)
	if errors.As(err, &f) {
		hint = f.hint
	}
	switch {
	case code == exitOK, f != nil && f.err == nil, code == exitInterrupted:
		return code
	case errors.As(err, &mistakes):
		e.diagnose(mistakes)
		err = errors.New(countMistakes(mistakes))
	case hint == "" && errors.As(err, &fault):
		hint = fault.Hint
	}
	fmt.Fprintf(e.stderr, "bj: error: %s\n", indent(e.clean(err.Error()), 4))
	if hint != "" {
		fmt.Fprintf(e.stderr, "bj: hint: %s\n", indent(e.clean(hint), 4))
	}
	return code
}

// diagnose prints mistakes of files, each on lines of its own.
func (e *env) diagnose(l diag.List) {
	for _, d := range l {
		fmt.Fprintln(e.stderr, e.clean(d.String()))
	}
}

// countMistakes sums mistakes up: "3 mistakes in 2 files".
func countMistakes(l diag.List) string {
	n, files := 0, map[string]bool{}
	for _, d := range l {
		if d.Severity != diag.Warning {
			n++
			files[d.Pos.File] = true
		}
	}
	return plural(n, "mistake") + " in " + plural(len(files), "file")
}

// plural prints a number with its noun.
func plural(n int, noun string) string {
	switch {
	case n == 1:
		return "1 " + noun
	case strings.HasSuffix(noun, "y"):
		return fmt.Sprintf("%d %sies", n, strings.TrimSuffix(noun, "y"))
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// indent keeps the lines after the first below it, n columns in.
func indent(s string, n int) string {
	return strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n"+strings.Repeat(" ", n))
}
