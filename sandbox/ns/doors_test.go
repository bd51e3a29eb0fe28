package ns

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bj/sandbox"
)

// A door carries streams and nothing else, cuts what it let through when it goes
// dark, and then notes who comes.
func TestDoor(t *testing.T) {
	dir := t.TempDir()
	outside, inside := filepath.Join(dir, "daemon"), filepath.Join(dir, "machine", "daemon")
	daemon, err := net.Listen("unix", outside)
	if err != nil {
		t.Fatal(err)
	}
	defer daemon.Close()
	rights := make(chan int, 1) // bytes of descriptors that came with the first message
	go func() {
		for {
			c, err := daemon.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf, oob := make([]byte, 64), make([]byte, 64)
				n, oobn, _, _, err := c.(*net.UnixConn).ReadMsgUnix(buf, oob)
				if err != nil {
					return
				}
				rights <- oobn
				c.Write(buf[:n])
				io.Copy(c, c)
			}()
		}
	}()

	doors, err := newDoors(sandbox.Policy{Sockets: []sandbox.Socket{{Condition: 3, Path: outside}, {Condition: 4, Path: "/x", Machines: []string{"other"}}}}, "m", "")
	if err != nil || len(doors) != 1 {
		t.Fatalf("%d doors, %v", len(doors), err)
	}
	d := doors[0]
	defer d.shut()
	fd, err := unix.Dup(int(d.file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if err := hang(os.NewFile(uintptr(fd), "door"), place{inside, 0o600}); err != nil {
		t.Fatal(err)
	}
	if err := d.open(); err != nil {
		t.Fatal(err)
	}
	come := func() *net.UnixConn {
		c, err := net.Dial("unix", inside)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(10 * time.Second))
		return c.(*net.UnixConn)
	}
	c := come()
	if _, _, err := c.WriteMsgUnix([]byte("hello"), unix.UnixRights(0), nil); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	if n, err := c.Read(buf); err != nil || string(buf[:n]) != "hello" {
		t.Fatalf("%q, %v", buf[:n], err)
	}
	if n := <-rights; n != 0 {
		t.Errorf("%d bytes of descriptors reached the daemon", n)
	}

	d.darken(true, d.ways...)
	if n, err := c.Read(buf); err == nil {
		t.Errorf("%q came after it went dark", buf[:n])
	}
	if n, err := come().Read(buf); err == nil {
		t.Errorf("%q was told in the dark", buf[:n])
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	uses := d.ways[0].uses
	if uses.Condition != 3 || uses.Count != 1 || len(d.blocked) != 1 || d.blocked[0].Count != 1 || d.blocked[0].Path != outside || d.blocked[0].First.IsZero() {
		t.Fatalf("used %+v, blocked %+v", uses, d.blocked)
	}
	if o := d.blocked[0].Origin; o == nil || o.PID != os.Getpid() || len(o.Argv) == 0 {
		t.Errorf("who came in the dark: %+v", o)
	}
}
