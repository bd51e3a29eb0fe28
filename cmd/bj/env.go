package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"unicode/utf8"

	"golang.org/x/term"

	"bj/run/event"
	terminalview "bj/run/term"
)

// env is what a command sees of the world, and the flags of all commands.
type env struct {
	stdin  io.Reader
	stdout *pipe
	stderr io.Writer
	getenv func(string) string
	dir    string // the current folder

	color   string // --color
	noCache bool   // --no-cache

	patient atomic.Bool                           // a second signal ends nothing
	live    atomic.Pointer[terminalview.Terminal] // what draws on stderr, if anything does
}

func newEnv() *env {
	dir, err := os.Getwd()
	if err != nil {
		dir = "."
	}
	return &env{
		stdin:  os.Stdin,
		stdout: &pipe{w: os.Stdout, workflow: os.Getenv("GITHUB_ACTIONS") == "true"},
		stderr: os.Stderr,
		getenv: os.Getenv,
		dir:    dir,
	}
}

// pipe is stdout. A reader that has gone away had all that it wanted: what is
// written after that is dropped, and the command's exit code stays its own.
//
// What is written is words, of which some are others': they are made harmless
// on the way. Drawn and exact are for what is not.
type pipe struct {
	w        io.Writer
	workflow bool   // what reads it obeys the commands of a GitHub workflow
	part     []byte // the beginning of a character whose end was not written yet
	closed   atomic.Bool
	gone     atomic.Pointer[func()]
}

// onClose has f called when the reader is found to have gone away.
func (p *pipe) onClose(f func()) { p.gone.Store(&f) }

// Write writes words.
func (p *pipe) Write(b []byte) (int, error) {
	all := append(p.part, b...)
	end := len(all)
	for i := max(0, end-utf8.UTFMax); i < end; i++ {
		if utf8.RuneStart(all[i]) && !utf8.FullRune(all[i:]) {
			end = i
		}
	}
	p.part = bytes.Clone(all[end:])
	return len(b), p.write([]byte(event.Clean(string(all[:end]))), p.workflow)
}

// drawn is for text that was made harmless already, and that has colours.
func (p *pipe) drawn() io.Writer { return &pen{p, p.workflow} }

// exact is for what must come through as it is.
func (p *pipe) exact() io.Writer { return &pen{p, false} }

// pen is another way to write to a pipe.
type pen struct {
	*pipe
	workflow bool
}

func (p *pen) Write(b []byte) (int, error) { return len(b), p.pipe.write(b, p.workflow) }

func (p *pipe) write(b []byte, workflow bool) error {
	if p.closed.Load() {
		return nil
	}
	if workflow {
		b = []byte(disobey(string(b)))
	}
	_, err := p.w.Write(b)
	if errors.Is(err, syscall.EPIPE) {
		p.closed.Store(true)
		if f := p.gone.Load(); f != nil {
			(*f)()
		}
		return nil
	}
	return err
}

// clean makes words harmless that go to stderr.
func (e *env) clean(s string) string {
	s = event.Clean(s)
	if e.stdout.workflow {
		s = disobey(s)
	}
	return s
}

// cacheDir is where what can be made again is kept: $BJ_CACHE, else bj in the
// user's cache folder.
func (e *env) cacheDir() (string, error) {
	if dir := e.getenv("BJ_CACHE"); dir != "" {
		return e.path(dir), nil
	}
	if dir := e.getenv("XDG_CACHE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "bj"), nil
	}
	if home := e.getenv("HOME"); filepath.IsAbs(home) {
		return filepath.Join(home, ".cache", "bj"), nil
	}
	return "", withHint(errors.New("there is no folder for the cache: HOME is not set"), "name one: BJ_CACHE=/var/cache/bj")
}

// cache returns the folder of the cache, and what the command calls at its end.
// With --no-cache it is a folder that nobody else sees, and that is removed.
func (e *env) cache() (dir string, done func(), err error) {
	if !e.noCache {
		dir, err = e.cacheDir()
		return dir, func() {}, err
	}
	dir, err = os.MkdirTemp("", "bj-no-cache-")
	if err != nil {
		return "", nil, fmt.Errorf("making a folder instead of the cache: %w", err)
	}
	return dir, func() {
		if err := os.RemoveAll(dir); err != nil {
			fmt.Fprintf(e.stderr, "bj: warning: removing %s: %v\n", dir, err)
		}
	}, nil
}

// resultsDir is where runs of the workspace are recorded: --results, else
// $BJ_RESULTS, else a folder of the workspace's name in the user's state folder.
func (e *env) resultsDir(flag, workspace string) (string, error) {
	if flag != "" {
		return e.path(flag), nil
	}
	if dir := e.getenv("BJ_RESULTS"); dir != "" {
		return e.path(dir), nil
	}
	if dir := e.getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "bj", workspace), nil
	}
	if home := e.getenv("HOME"); filepath.IsAbs(home) {
		return filepath.Join(home, ".local", "state", "bj", workspace), nil
	}
	return "", withHint(errors.New("there is no folder for results: HOME is not set"), "name one: --results DIR")
}

// path returns where a path of the command line leads.
func (e *env) path(p string) string {
	if filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(e.dir, p)
}

// terminal reports whether w is one.
func terminal(w io.Writer) bool { return screenOf(w) != nil }

// screenOf returns the terminal that w is; nil if it is none.
func screenOf(w io.Writer) *os.File {
	switch p := w.(type) {
	case *pipe:
		w = p.w
	case *pen:
		w = p.w
	}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return f
	}
	return nil
}

// colored reports whether what goes to w may have colours: --color, then
// NO_COLOR, then CLICOLOR_FORCE, then whether it is a terminal.
func (e *env) colored(w io.Writer) bool {
	switch {
	case e.color == "always":
		return true
	case e.color == "never", e.getenv("NO_COLOR") != "":
		return false
	case e.getenv("CLICOLOR_FORCE") != "" && e.getenv("CLICOLOR_FORCE") != "0":
		return true
	}
	return terminal(w) && e.getenv("TERM") != "dumb"
}

// say tells on stderr what is going on, above what is drawn there.
func (e *env) say(text string) {
	if t := e.live.Load(); t != nil {
		t.Say("bj: " + text)
		return
	}
	fmt.Fprintln(e.stderr, "bj: "+e.clean(text))
}

// animated reports whether w is a terminal that lines may be drawn again on.
func (e *env) animated(w io.Writer) bool {
	return terminal(w) && e.getenv("TERM") != "dumb" && e.getenv("NO_COLOR") == "" && e.getenv("CI") == ""
}
