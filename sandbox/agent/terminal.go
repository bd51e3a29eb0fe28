package agent

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"bj/sandbox"
)

// hangupDeadline bounds the wait for the rest of what a terminal shows, once its
// command has ended: the kernel hangs up then, whoever else has it open.
const hangupDeadline = 2 * time.Second

// openTerminal makes a pseudo terminal of the machine's own, and returns its two
// sides.
func openTerminal(size sandbox.Terminal) (master *os.File, slave int, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, -1, fmt.Errorf("making a terminal: %w", err)
	}
	fail := func(err error) (*os.File, int, error) {
		unix.Close(fd)
		return nil, -1, fmt.Errorf("making a terminal: %w", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return fail(err)
	}
	// Not by its path, which root of the machine may have mounted over.
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return fail(errno)
	}
	slave = int(peer)
	if err := resize(fd, size); err != nil {
		unix.Close(slave)
		return fail(err)
	}
	return os.NewFile(uintptr(fd), "terminal"), slave, nil
}

func resize(fd int, size sandbox.Terminal) error {
	return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Columns})
}

// input is what the host sends to a command's input or terminal.
type input struct {
	Command uint32
	Data    []byte            `json:",omitempty"`
	Close   bool              `json:",omitempty"`
	Size    *sandbox.Terminal `json:",omitempty"`
}

var errNoInput = errors.New("the command has no input")

// input passes on what was typed, in the background, since the command may not
// read; the host sends more when that was answered.
func (g *guest) input(id uint32, m input) {
	c := g.command(m.Command)
	g.running.Go(func() {
		err := errNoInput
		if c != nil && c.in != nil {
			err = nil
			if len(m.Data) > 0 {
				_, err = c.in.Write(m.Data)
			}
			if err == nil && m.Size != nil && c.terminal {
				var raw interface {
					Control(func(uintptr)) error
				}
				if raw, err = c.in.SyscallConn(); err == nil {
					raw.Control(func(fd uintptr) { err = resize(int(fd), *m.Size) })
				}
			}
			if m.Close && !c.terminal {
				c.in.Close()
			}
		}
		g.out.send(kindReply, id, reply{Error: text(err)})
	})
}
