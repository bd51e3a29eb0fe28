package agent

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Serve is the guest's side of conn. It takes the whole process over: its
// signals, its children (all of them are reaped), its umask and limits. It
// returns when the host has said so (nil), or when the stream is broken or ctx
// is done (an error); in each case everything that it started is dead, and the
// caller should end the process.
//
// The machine must be complete when Serve is called: commands see its /proc,
// /etc/passwd and home folders.
func Serve(ctx context.Context, conn io.ReadWriteCloser, opts Options) error {
	signals := make(chan os.Signal, 1)
	// All signals are caught: Go would end the process for SIGQUIT or SIGSEGV
	// that root in the machine sends, and an ignored signal would stay ignored
	// in every command.
	signal.Notify(signals)
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	defer signal.Reset()

	if err := harden(); err != nil {
		return err
	}
	if err := confine(opts.Apart); err != nil {
		return err
	}
	tracker, err := newTracker(opts)
	if err != nil {
		return err
	}
	spawner := newSpawner(tracker, opts.Apart)
	watcher, err := newWatcher(spawner)
	if err != nil {
		return err
	}
	g := &guest{
		opts:     opts,
		out:      &frameWriter{w: conn},
		tracker:  tracker,
		spawner:  spawner,
		watcher:  watcher,
		commands: map[uint32]*command{},
		groups:   map[group]bool{},
		files:    map[uint32]*incoming{},
	}

	done := make(chan struct{})
	var workers sync.WaitGroup
	workers.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-signals:
			case <-children:
				spawner.reap()
			case listener := <-opts.Watched:
				watcher.listen(listener)
			}
		}
	})
	// Closing the stream is what ends a read or write that is under way.
	stop := context.AfterFunc(ctx, func() { conn.Close() })

	err = g.serve(conn)
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		// Deaths by the agent's own hand are no exits of commands.
		conn.Close()
		g.out.stop(err)
	}
	killed := g.killAll()
	if err == nil {
		err = g.out.send(kindBye, 0, nil)
	}
	stop()
	conn.Close()
	g.settle()
	close(done)
	workers.Wait()
	watcher.close()
	spawner.stop()
	tracker.close()
	return errors.Join(err, killed)
}

// harden sets what every command inherits, and closes what none may reach.
func harden() error {
	// Whatever descriptors the agent was given are its own.
	if err := unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("closing descriptors on exec: %w", err)
	}
	// Users of the machine cannot trace the agent or read its memory. Root of the
	// machine can, unless the agent was executed from a file that it may not read
	// and whose owner its user namespace does not know.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("making the agent undumpable: %w", err)
	}
	// Orphans come to the agent, also where it is not the first process.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("becoming the reaper of orphans: %w", err)
	}
	if err := LimitCores(); err != nil {
		return err
	}
	unix.Umask(0o022)
	return nil
}

// A guest is the state behind one stream. Its maps belong to mu; requests are
// read by one goroutine.
type guest struct {
	opts    Options
	out     *frameWriter
	tracker tracker
	spawner *spawner
	watcher *watcher
	running sync.WaitGroup // commands and requests under way

	mu       sync.Mutex
	commands map[uint32]*command // whose output is open
	groups   map[group]bool      // of which something may live; true once the command was forgotten

	files  map[uint32]*incoming // owned by the reading goroutine
	probes []*attempt           // owned by the reading goroutine
}

// serve answers requests until the host quits (nil) or the stream breaks.
func (g *guest) serve(conn io.Reader) error {
	nonce := rand.Text()
	if err := g.out.send(kindHello, 0, hello{Protocol: protocol, Nonce: nonce}); err != nil {
		return err
	}
	defer g.dropFiles()
	defer g.dropProbes()
	r := bufio.NewReaderSize(conn, chunk+headerSize)
	attached := false
	for {
		f, err := readFrame(r)
		if err != nil {
			return fmt.Errorf("reading requests: %w", noEOF(err))
		}
		if attached != (f.kind != kindAttach) {
			return fmt.Errorf("%w: kind %d, attached %t", errFrame, f.kind, attached)
		}
		switch f.kind {
		case kindAttach:
			h, err := decode[hello](f)
			if err != nil {
				return err
			}
			if h.Protocol != protocol || h.Nonce != nonce {
				return fmt.Errorf("%w: protocol %d, wanted %d, or a nonce of another life", errFrame, h.Protocol, protocol)
			}
			attached = true
		case kindQuit:
			return nil
		default:
			if err := g.request(f); err != nil {
				return err
			}
		}
	}
}

// request does what f asks. An error means that the stream is not to be
// trusted any more; what goes wrong in a request is told in its reply.
func (g *guest) request(f frame) error {
	switch f.kind {
	case kindStart:
		m, err := decode[start](f)
		if err != nil {
			return err
		}
		return g.start(f.id, m)
	case kindCredit:
		m, err := decode[credit](f)
		if err != nil {
			return err
		}
		// A command that has just ended is not there any more.
		if c := g.command(f.id); c != nil && !c.credit.give(m.Bytes) {
			return fmt.Errorf("%w: credit of %d bytes", errFrame, m.Bytes)
		}
	case kindKill:
		m, err := decode[target](f)
		if err != nil {
			return err
		}
		g.kill(f.id, g.groupsOf(func(gr group) bool { return gr.name == m.Command }))
	case kindKillUnit:
		m, err := decode[target](f)
		if err != nil {
			return err
		}
		groups := g.groupsOf(func(gr group) bool { return gr.unit == m.Unit })
		g.kill(f.id, append(groups, g.tracker.others(m.Unit)...))
	case kindPut:
		m, err := decode[put](f)
		if err != nil {
			return err
		}
		return g.put(f.id, m)
	case kindData:
		return g.data(f.id, f.payload)
	case kindProbe:
		m, err := decode[[]Probe](f)
		if err != nil {
			return err
		}
		return g.out.send(kindReply, f.id, reply{Outcomes: g.probe(m)})
	case kindInput:
		m, err := decode[input](f)
		if err != nil {
			return err
		}
		g.input(f.id, m)
	case kindTried:
		return g.out.send(kindReply, f.id, reply{Tried: &Tried{Attempts: g.watcher.list(), Listening: g.watcher.listening()}})
	case kindProbed:
		return g.out.send(kindReply, f.id, reply{Outcomes: g.probed()})
	default:
		return fmt.Errorf("%w: kind %d is not for the guest", errFrame, f.kind)
	}
	return nil
}

// kill kills groups in the background, for that may take a while, and replies.
func (g *guest) kill(id uint32, groups []group) {
	g.running.Go(func() {
		n, err := g.tracker.kill(groups, time.Now().Add(killDeadline))
		g.out.send(kindReply, id, reply{Count: n, Error: text(err)})
	})
}

// killAll kills all that lives. The reading goroutine calls it when no request
// can come any more.
func (g *guest) killAll() error {
	g.mu.Lock()
	for _, c := range g.commands {
		c.credit.close()
	}
	g.mu.Unlock()
	all := g.groupsOf(func(group) bool { return true })
	if _, err := g.tracker.kill(all, time.Now().Add(killDeadline)); err != nil {
		return fmt.Errorf("killing everything: %w", err)
	}
	return nil
}

// settle waits until what was killed is reaped, but not for what left its group
// and holds a pipe: that ends with the process that called Serve.
func (g *guest) settle() {
	settled := make(chan struct{})
	go func() {
		g.running.Wait()
		close(settled)
	}()
	select {
	case <-settled:
	case <-time.After(settleDeadline):
	}
}

func (g *guest) command(id uint32) *command {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.commands[id]
}

func (g *guest) groupsOf(wanted func(group) bool) []group {
	g.mu.Lock()
	defer g.mu.Unlock()
	var found []group
	for gr := range g.groups {
		if wanted(gr) {
			found = append(found, gr)
		}
	}
	return found
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// LimitCores stops core dumps of this process and all that it will start. A limit
// of 1 is what does so also where core_pattern, which is the host's, names a
// program. Where the limit is 0 already, only who has rights over the host can
// raise it to that: without them it stays, and such a program is told of crashes.
func LimitCores() error {
	err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 1, Max: 1})
	if errors.Is(err, unix.EPERM) {
		err = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	}
	if err != nil {
		return fmt.Errorf("limiting core dumps: %w", err)
	}
	return nil
}
