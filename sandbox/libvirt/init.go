package libvirt

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"bj/sandbox"
	"bj/sandbox/agent"
)

// A machine whose image is booted by its own systemd starts as every other does,
// with the agent as its first process, until it knows who it is and its root is
// there. Then the agent goes on in a child, and the first process waits:
//
//	pid 1    waits for the seal ── executes /sbin/init
//	child    answers bj, runs commands, watches: its parent is systemd then
//
// So nothing of the image runs before the seal holds, and what systemd starts is
// watched as what commands start is: the filter is pid 1's before it is systemd.

// besideCommand is the hidden command of the agent beside systemd. Its name
// begins with a letter that systemd takes for something to be left alone while
// the machine shuts down.
const (
	besideCommand = "@bj"
	besideArg     = "__beside"
)

// handOver starts the agent in a child, and becomes /sbin/init when that says so.
// It returns only with an error.
func (g *machine) handOver(ctl *os.File) error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("making a socket: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "agent"), os.NewFile(uintptr(fds[1]), "init")
	who, err := json.Marshal(g.identity)
	if err != nil {
		return err
	}
	child := exec.Command("/proc/self/exe")
	child.Args = []string{besideCommand, besideArg}
	child.Env = []string{}
	child.ExtraFiles = []*os.File{ctl, g.channel, theirs}
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := child.Start(); err != nil {
		return fmt.Errorf("starting the agent: %w", err)
	}
	theirs.Close()
	ctl.Close()
	g.channel.Close()
	lines := bufio.NewReader(ours)
	if _, err := ours.Write(append(who, '\n')); err != nil {
		return fmt.Errorf("telling the agent who it is: %w", err)
	}
	if _, err := lines.ReadString('\n'); err != nil {
		return fmt.Errorf("waiting for the seal: %w", err)
	}
	runtime.LockOSThread()
	listener, err := agent.Enter()
	if err != nil {
		return err
	}
	// The agent takes a copy of the listener: to send it would be a call that
	// stops already.
	fmt.Fprintln(ours, listener)
	if _, err := lines.ReadString('\n'); err != nil {
		return fmt.Errorf("waiting for the agent to watch: %w", err)
	}
	err = syscall.Exec("/sbin/init", []string{"/sbin/init"}, []string{"TERM=linux", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"})
	fmt.Fprintln(ours, "executing /sbin/init: "+err.Error())
	return fmt.Errorf("executing /sbin/init: %w", err)
}

// besideMain is the agent beside systemd. It ends with the machine.
func besideMain() { powerOff(beside()) }

func beside() error {
	for fd := 3; fd <= 5; fd++ {
		unix.CloseOnExec(fd)
	}
	for fd := 3; fd <= 4; fd++ { // which whoever handed them on has made blocking
		if err := unix.SetNonblock(fd, true); err != nil {
			return fmt.Errorf("opening the channels: %w", err)
		}
	}
	ctl, channel, first := os.NewFile(3, controlPort), os.NewFile(4, agentPort), os.NewFile(5, "init")
	g := &machine{channel: channel, ended: make(chan error, 2), first: &firstProcess{conn: first, lines: bufio.NewReader(first), watched: make(chan int, 1)}}
	line, err := g.first.lines.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("being told who it is: %w", err)
	}
	var id identity
	if err := json.Unmarshal(line, &id); err != nil {
		return fmt.Errorf("being told who it is: %w", err)
	}
	if err := g.run(id); err != nil {
		return err
	}
	if err := json.NewEncoder(ctl).Encode(response{}); err != nil {
		return fmt.Errorf("answering bj: %w", err)
	}
	go func() { g.ended <- g.serve(ctl) }()
	return <-g.ended
}

// firstProcess is pid 1, as the agent beside it sees it.
type firstProcess struct {
	conn    *os.File
	lines   *bufio.Reader
	watched chan int // its listener, for the agent
	begun   bool
}

// begin makes it /sbin/init.
func (p *firstProcess) begin() error {
	if p.begun {
		return errors.New("the init system has begun already")
	}
	p.begun = true
	if _, err := fmt.Fprintln(p.conn, "begin"); err != nil {
		return fmt.Errorf("starting the init system: %w", err)
	}
	line, err := p.lines.ReadString('\n')
	if err != nil {
		return fmt.Errorf("starting the init system: %w", err)
	}
	var theirs int
	if _, err := fmt.Sscan(line, &theirs); err != nil {
		return fmt.Errorf("starting the init system: %w", err)
	}
	if theirs >= 0 {
		pidfd, err := unix.PidfdOpen(1, 0)
		if err != nil {
			return fmt.Errorf("opening the first process: %w", err)
		}
		defer unix.Close(pidfd)
		listener, err := unix.PidfdGetfd(pidfd, theirs, 0)
		if err != nil {
			return fmt.Errorf("taking over its listener: %w", err)
		}
		p.watched <- listener
	}
	if _, err := fmt.Fprintln(p.conn, "go"); err != nil {
		return fmt.Errorf("starting the init system: %w", err)
	}
	// The socket closes when the program has been executed.
	rest, err := io.ReadAll(p.lines)
	if err == nil && len(rest) > 0 {
		err = errors.New(strings.TrimSpace(string(rest)))
	}
	if err != nil {
		return fmt.Errorf("starting the init system: %w", err)
	}
	return nil
}

// initDeadline bounds how long systemd may take to start its units. Emulated, on
// a busy host, a small Debian takes a minute at times.
const initDeadline = 4 * time.Minute

// booted waits until systemd has started, or given up on, all that it starts by
// itself. It prints the state, and units that failed.
const booted = `while :; do
	state=$(systemctl is-system-running --wait 2>/dev/null) || true
	case $state in running|degraded|maintenance|stopping) break;; esac
	sleep 0.1
done
echo "$state"
systemctl list-units --state=failed --plain --no-legend --no-pager | while read -r unit rest; do echo "$unit"; done`

// startInits starts the systemd of those machines that have one, and waits for
// it. The seal holds.
func (e *environment) startInits(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, initDeadline, fmt.Errorf("systemd was not ready within %s", initDeadline))
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	var mu sync.Mutex
	for _, g := range e.machines {
		if !g.systemd {
			continue
		}
		group.Go(func() error {
			failed, err := g.startInit(ctx)
			if err != nil {
				return &sandbox.Error{Code: sandbox.CodeLease, Err: fmt.Errorf("booting %s: %w", g.name, err), Hint: "its image must boot by its own systemd, without network"}
			}
			if len(failed) > 0 {
				mu.Lock()
				defer mu.Unlock()
				e.provider.opts.Notice(fmt.Sprintf("%s: systemd could not start %s of its image", g.name, strings.Join(failed, ", ")))
			}
			return nil
		})
	}
	return group.Wait()
}

func (g *guestMachine) startInit(ctx context.Context) (failed []string, err error) {
	if err := g.control.call(ctx, "begin", struct{}{}, nil); err != nil {
		return nil, err
	}
	var out strings.Builder
	proc, err := g.client.Start(ctx, sandbox.Command{Script: booted, Unit: "boot"}, func(_ sandbox.Stream, b []byte) { out.Write(b) })
	if err != nil {
		return nil, err
	}
	exit, err := proc.Wait(ctx)
	if err != nil {
		err = cause(ctx, err)
		if tail := lastLines(g.console); tail != "" {
			err = fmt.Errorf("%w; its console says: %s", err, tail)
		}
		return nil, err
	}
	state, rest, _ := strings.Cut(strings.TrimSpace(out.String()), "\n")
	failed = strings.Fields(rest)
	if exit.Code != 0 || state != "running" && state != "degraded" {
		return nil, fmt.Errorf("systemd is %q (failed: %s)", state, strings.Join(failed, ", "))
	}
	return failed, nil
}
