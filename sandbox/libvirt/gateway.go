package libvirt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"bj/sandbox/hub"
)

// hubCommand is the hidden command of the gateway.
const hubCommand = "__hub"

// Main runs the hidden command that args (os.Args) ask for, and reports whether
// there was one. It must be called before anything else of the program.
func Main(args []string) (handled bool, err error) {
	switch {
	case os.Getpid() == 1 && len(args) > 0 && args[0] == "/init":
		guestMain()
	case os.Getppid() == 1 && len(args) == 2 && args[0] == besideCommand && args[1] == besideArg:
		besideMain()
	case len(args) > 1 && args[1] == hubCommand:
		return true, gatewayMain()
	}
	return false, nil
}

// setupRequest is the machines at the hub. Their taps are there already.
type setupRequest struct{ Machines []linked }

// linked is a machine that hangs on the hub by its tap.
type linked struct {
	Name   string
	V4, V6 netip.Addr
	MAC    net.HardwareAddr
	Tap    string
}

// gatewayMain serves bj on descriptor 3 until it is closed. Descriptor 4 is the
// lease's lock, held for as long as this process lives.
func gatewayMain() error {
	// What bj had open itself, by inheritance, goes no further.
	if err := hub.CloseInherited(4); err != nil {
		return fmt.Errorf("closing inherited files: %w", err)
	}
	unix.CloseOnExec(3)
	unix.CloseOnExec(4)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU)
	conn, err := hub.UnixConn(os.NewFile(3, "bj"))
	if err != nil {
		return err
	}
	err = hub.NewGateway(conn, setup).Run(context.Background())
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func setup(_ context.Context, g *hub.Gateway, params json.RawMessage, fds []*os.File) error {
	hub.CloseAll(fds)
	var r setupRequest
	if err := json.Unmarshal(params, &r); err != nil {
		return fmt.Errorf("decoding a request: %w", err)
	}
	n, err := hub.NewNet()
	if err != nil {
		return err
	}
	var machines []*hub.Machine
	for i, m := range r.Machines {
		at := &hub.Machine{Name: m.Name, Index: i, V4: m.V4, V6: m.V6, MAC: m.MAC, Tap: m.Tap}
		if err := n.Attach(at); err != nil {
			return err
		}
		machines = append(machines, at)
	}
	return g.Adopt(n, machines)
}

// gateway is the process as bj sees it.
type gateway struct {
	cmd    *exec.Cmd
	stderr hub.Output
	ended  chan struct{}
}

// startGateway starts it in network and mount namespaces of its own. It dies
// with bj, and with it the hub, all taps and all rules.
func startGateway(agent string, lease *os.File) (*gateway, *net.UnixConn, error) {
	ours, theirs, err := hub.SocketPair()
	if err != nil {
		return nil, nil, err
	}
	defer theirs.Close()
	conn, err := hub.UnixConn(ours)
	if err != nil {
		return nil, nil, err
	}
	g := &gateway{cmd: exec.Command(agent), ended: make(chan struct{})}
	g.cmd.Args = []string{"bj", hubCommand}
	g.cmd.Env = []string{"GOMAXPROCS=2"}
	g.cmd.ExtraFiles = []*os.File{theirs, lease}
	g.cmd.Stderr = &g.stderr
	g.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
	}
	started := make(chan error, 1)
	go func() {
		// The parent-death signal comes when the thread that started the process
		// ends, so this one must stay for as long as the gateway.
		runtime.LockOSThread()
		err := g.cmd.Start()
		started <- err
		if err == nil {
			g.cmd.Wait()
		}
		close(g.ended)
	}()
	if err := <-started; err != nil {
		conn.Close()
		return nil, nil, fmt.Errorf("starting the gateway: %w", err)
	}
	return g, conn, nil
}

// kill ends the gateway and waits for that.
func (g *gateway) kill(ctx context.Context) error {
	if err := g.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("ending the gateway: %w", err)
	}
	select {
	case <-g.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for the gateway to end: %w", ctx.Err())
	}
}
