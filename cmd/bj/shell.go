package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/term"

	"bj/lang"
	"bj/run"
	"bj/run/event"
	terminalview "bj/run/term"
	"bj/sandbox"
	"bj/sandbox/gate"
)

// shellFlags are the flags of bj shell.
type shellFlags struct {
	sandbox, supply, results string
	after, machine           string
	fresh                    bool
}

func shellCommand() *command {
	var f shellFlags
	return &command{
		name:  "shell",
		args:  "LABEL",
		short: "opens a prompt in a recipe's machine, under the same seal",
		long: `leases the recipe's machines, closes the seal, does the steps up to the one that
--after names, and opens a prompt on a machine, with the tools on the path. a step
that fails on the way is said, and the prompt is opened all the same. leaving the
prompt removes the environment. where bj test --keep holds an environment of the
recipe, that is entered instead, and stays. without a terminal, what comes on
stdin is run as a script.`,
		example: `  bj shell //recipes/etcd:cold_start --after "Start every member"
  bj shell //recipes/etcd:cold_start --machine etcd-1
  echo 'ip addr' | bj shell //recipes/etcd:cold_start`,
		flags: func(fs *pflag.FlagSet) {
			fs.StringVar(&f.sandbox, "sandbox", "", "lease machines from `provider`: "+strings.Join(sandboxes(), " or "))
			fs.StringVar(&f.supply, "supply", "", "take allowed capabilities from `production|recipes`")
			fs.StringVar(&f.after, "after", "", "do the strategy up to and with `step`; nothing of it if empty")
			fs.StringVar(&f.machine, "machine", "", "open the prompt on machine `name`; on the first if empty")
			fs.BoolVar(&f.fresh, "fresh", false, "lease machines even where an environment is kept")
		},
		run: f.run,
	}
}

func (f *shellFlags) run(ctx context.Context, e *env, args []string) error {
	w, err := e.workbench(ctx, "shell", args, f.sandbox, f.supply, f.results)
	if err != nil {
		return err
	}
	defer w.done()
	n, err := f.actions(w)
	if err != nil {
		return err
	}
	var machines []string
	for _, m := range w.recipe.Machines() {
		machines = append(machines, m.Name)
	}
	if f.machine != "" && !slices.Contains(machines, f.machine) {
		return usage(lang.DidYouMean(f.machine, machines, "there are: "+strings.Join(machines, ", ")), "%s has no machine %q", w.recipe.Label, f.machine)
	}
	if f.after == "" && !f.fresh {
		entered, err := e.enterKept(ctx, w.workspace.Root, w.recipe.Label, f.machine)
		if entered || err != nil {
			return err
		}
	}
	said := &shellVoice{w: e.stderr}
	o := run.Options{Provider: w.provider, Stager: w.stager, Version: version, Sink: said.event, Lookup: gate.Lookup}
	err = run.Shell(ctx, w.plans(w.recipe)[0], n, o, func(ctx context.Context, in *run.Inside) error {
		said.quiet(true)
		defer said.quiet(false)
		name := f.machine
		if name == "" && len(in.Machines) > 0 {
			name = in.Machines[0]
		}
		s, leave, err := e.sit()
		if err != nil {
			return err
		}
		defer leave()
		if s.size != nil {
			fmt.Fprintf(e.stderr, "bj: on %s, sealed; leaving the shell removes it\r\n", name)
		}
		exit, err := visit(ctx, in, name, s)
		leave()
		return s.verdict(exit, err)
	})
	said.blocked()
	return err
}

// actions returns how many actions of the strategy come before the prompt.
func (f *shellFlags) actions(w *workbench) (int, error) {
	if f.after == "" {
		return 0, nil
	}
	titles := run.Actions(w.recipe)
	i := slices.Index(titles, f.after)
	if i < 0 {
		return 0, usage(lang.DidYouMean(f.after, titles, "the strategy has: "+strings.Join(titles, "; ")), "%s has no step %q", w.recipe.Label, f.after)
	}
	return i + 1, nil
}

// A seat is where somebody sits who looks into a machine.
type seat struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	size           *sandbox.Terminal // nil: no terminal
	resized        <-chan sandbox.Terminal
	term           string // what kind of terminal
}

// sit returns the seat of this process. Leave gives the terminal back; it may be
// called more than once.
func (e *env) sit() (s *seat, leave func(), err error) {
	s = &seat{stdin: e.stdin, stdout: e.stdout.exact(), stderr: e.stderr}
	in, ok := e.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) || !terminal(e.stdout) {
		return s, func() {}, nil
	}
	fd := int(in.Fd())
	size := func() sandbox.Terminal {
		columns, rows, err := term.GetSize(fd)
		if err != nil {
			return sandbox.Terminal{Rows: 24, Columns: 80}
		}
		return sandbox.Terminal{Rows: uint16(rows), Columns: uint16(columns)}
	}
	now := size()
	s.size, s.term = &now, e.getenv("TERM")
	before, err := term.MakeRaw(fd)
	if err != nil {
		return nil, nil, fmt.Errorf("taking over the terminal: %w", err)
	}
	signals, resized, done := make(chan os.Signal, 1), make(chan sandbox.Terminal, 1), make(chan struct{})
	signal.Notify(signals, syscall.SIGWINCH)
	go func() {
		for {
			select {
			case <-signals:
				select {
				case resized <- size():
				case <-done:
					return
				}
			case <-done:
				return
			}
		}
	}()
	s.resized = resized
	return s, sync.OnceFunc(func() {
		signal.Stop(signals)
		close(done)
		term.Restore(fd, before)
	}), nil
}

// verdict makes an error of how a visit ended. That of a person's last command
// is none.
func (s *seat) verdict(exit sandbox.Exit, err error) error {
	if err != nil || s.size != nil || exit.Code == 0 {
		return err
	}
	return &failure{code: exitNotRecovered, err: fmt.Errorf("the script ended with exit code %d", exit.Code)}
}

// shellUnit is the unit of what people run.
const shellUnit = "shell"

// prompt is the shell that people get: bash where there is one.
const prompt = `if command -v bash >/dev/null 2>&1; then exec bash --norc -i; fi; exec sh -i`

// visit runs a shell on a machine for whoever sits at s.
func visit(ctx context.Context, in *run.Inside, machine string, s *seat) (sandbox.Exit, error) {
	c := sandbox.Command{Argv: []string{"/bin/sh"}, Unit: shellUnit, Input: true}
	if s.size != nil {
		c = sandbox.Command{Argv: []string{"/bin/sh", "-c", prompt}, Unit: shellUnit, Terminal: s.size,
			Env: map[string]string{"PS1": "(sealed) " + machine + " # ", "TERM": s.term}}
		if s.term == "" {
			c.Env["TERM"] = "dumb"
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p, err := in.Start(ctx, machine, c, func(stream sandbox.Stream, b []byte) {
		w := s.stdout
		if stream == sandbox.Stderr {
			w = s.stderr
		}
		w.Write(b)
	})
	if err != nil {
		return sandbox.Exit{}, err
	}
	go func() { // ends with its reader, or with the process
		buf := make([]byte, 16<<10)
		for ctx.Err() == nil {
			n, err := s.stdin.Read(buf)
			if n > 0 && p.Write(ctx, buf[:n]) != nil {
				return
			}
			if err != nil {
				p.CloseInput(ctx)
				return
			}
		}
	}()
	go func() {
		for {
			select {
			case size, ok := <-s.resized:
				if !ok {
					return
				}
				p.Resize(ctx, size)
			case <-ctx.Done():
				return
			}
		}
	}()
	exit, err := p.Wait(ctx)
	if err != nil { // whoever sat there has gone
		kctx, stop := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		p.Kill(kctx)
		stop()
	}
	if err != nil && ctx.Err() == nil {
		select {
		case <-in.Lost():
			err = errors.New("the environment was lost")
		case <-time.After(time.Second):
		}
	}
	return exit, err
}

// shellVoice says what happens before and after a visit.
type shellVoice struct {
	w io.Writer

	mu     sync.Mutex
	hushed bool
	seen   []string
}

func (v *shellVoice) quiet(yes bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.hushed = yes
}

func (v *shellVoice) event(x event.Event) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if b := x.Blocked; b != nil && b.Count > 0 {
		line := terminalview.Destination(*b)
		if b.Process != nil {
			line += ", by " + strings.Join(b.Process.Argv, " ")
		}
		if b.Allow != "" {
			line += "; " + b.Allow + " would allow it"
		}
		if !slices.Contains(v.seen, line) {
			v.seen = append(v.seen, line)
		}
	}
	if v.hushed {
		return
	}
	switch x.Event {
	case event.Build, event.Note:
		fmt.Fprintf(v.w, "bj: %s\n", event.Clean(x.Text))
	case event.StepStarted:
		fmt.Fprintf(v.w, "bj: %s: %s\n", x.Machine, x.Step)
	}
}

// blocked says what the seal has blocked.
func (v *shellVoice) blocked() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for i, line := range v.seen {
		if i == 10 {
			fmt.Fprintf(v.w, "bj: and %d more\n", len(v.seen)-i)
			return
		}
		fmt.Fprintf(v.w, "bj: blocked: %s\n", event.Clean(line))
	}
}
