package libvirt

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	govirt "github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket/dialers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bj/sandbox"
)

// Everything that holds only because libvirt is on this machine is in this
// file: its socket, paths that both sides can open, taps, and process files.

// DefaultURI is libvirt's own instance for the whole machine.
const DefaultURI = "qemu:///system"

// connectDeadline bounds the wait for libvirt.
const connectDeadline = 30 * time.Second

// connect returns a connection to the libvirt of that URI.
func connect(ctx context.Context, uri string) (*govirt.Libvirt, error) {
	u, err := url.Parse(uri)
	if err != nil || u.Scheme == "" {
		return nil, &sandbox.Error{Code: sandbox.CodeLease, Err: fmt.Errorf("%q is no libvirt URI", uri), Hint: "BJ_LIBVIRT_URI=" + DefaultURI}
	}
	if u.Host != "" || !strings.HasPrefix(u.Scheme, "qemu") {
		return nil, &sandbox.Error{Code: sandbox.CodeLease, Err: fmt.Errorf("libvirt %s: machines are made by QEMU on this host only", uri), Hint: "BJ_LIBVIRT_URI=" + DefaultURI}
	}
	type made struct {
		l   *govirt.Libvirt
		err error
	}
	done := make(chan made, 1)
	go func() {
		var options []dialers.LocalOption
		if path := u.Query().Get("socket"); path != "" {
			options = append(options, dialers.WithSocket(path))
		}
		l := govirt.NewWithDialer(localDialer{dialers.NewLocal(options...)})
		err := l.ConnectToURI(govirt.RemoteURI(u))
		done <- made{l, err}
	}()
	given := ctx
	ctx, cancel := context.WithTimeout(ctx, connectDeadline)
	defer cancel()
	var m made
	select {
	case m = <-done:
	case <-ctx.Done():
		go func() {
			if m := <-done; m.err == nil {
				m.l.Disconnect()
			}
		}()
		if given.Err() != nil {
			return nil, context.Cause(given)
		}
		m.err = fmt.Errorf("no answer within %s", connectDeadline)
	}
	if m.err == nil {
		return m.l, nil
	}
	e := &sandbox.Error{Code: sandbox.CodeLease, Err: fmt.Errorf("connecting to libvirt at %s: %w", uri, m.err)}
	switch {
	case errors.Is(m.err, fs.ErrNotExist):
		e.Err = fmt.Errorf("there is no libvirt at %s: %w", uri, m.err)
		e.Hint = "apt-get install libvirt-daemon-system qemu-system-x86, then systemctl start libvirtd (or virtlogd -d and libvirtd -d)"
	case errors.Is(m.err, fs.ErrPermission):
		e.Err = fmt.Errorf("this user may not use the libvirt at %s: %w", uri, m.err)
		e.Hint = "run bj as root"
	case errors.Is(m.err, unix.ECONNREFUSED):
		e.Err = fmt.Errorf("libvirtd does not run at %s: %w", uri, m.err)
		e.Hint = "systemctl start libvirtd (or virtlogd -d and libvirtd -d)"
	default:
		e.Hint = "virsh -c " + uri + " version says more"
	}
	return nil, e
}

// localDialer makes connections that close themselves when the other side has
// closed them: go-libvirt's Disconnect closes only what libvirtd has not yet, and
// would leave a descriptor.
type localDialer struct{ *dialers.Local }

func (d localDialer) Dial() (net.Conn, error) {
	c, err := d.Local.Dial()
	if err != nil {
		return nil, err
	}
	return &closing{Conn: c}, nil
}

type closing struct{ net.Conn }

func (c *closing) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if errors.Is(err, io.EOF) {
		c.Conn.Close()
	}
	return n, err
}

// emulatorUser returns the ids that QEMU runs under: not root's.
func emulatorUser() (uid, gid int, err error) {
	for _, name := range []string{"libvirt-qemu", "qemu"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		if uid, err = strconv.Atoi(u.Uid); err != nil {
			continue
		}
		gid, err = strconv.Atoi(u.Gid)
		return uid, gid, err
	}
	return 0, 0, &sandbox.Error{Code: sandbox.CodeLease, Err: errors.New("there is no account for QEMU: neither libvirt-qemu nor qemu"),
		Hint: "apt-get install libvirt-daemon-system"}
}

// imagesDir holds links to (or copies of) images that QEMU's account could not
// reach where the cache is.
const imagesDir = "/var/lib/bj/images"

// reachable returns a path of the file that every account can read.
func reachable(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	fi, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	open := fi.Mode().Perm()&0o004 != 0
	for dir := filepath.Dir(path); open && dir != "/"; dir = filepath.Dir(dir) {
		d, err := os.Stat(dir)
		open = err == nil && d.Mode().Perm()&0o001 != 0
	}
	if open {
		return path, nil
	}
	// The store names its files by what they hold, and they never change.
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", path, fi.Size()))
	to := filepath.Join(imagesDir, hex.EncodeToString(sum[:12]))
	now := time.Now()
	if os.Chtimes(to, now, now) == nil {
		return to, nil
	}
	if err := os.MkdirAll(imagesDir, 0o755); err != nil {
		return "", fmt.Errorf("making a folder that QEMU can read: %w", err)
	}
	if fi.Mode().Perm()&0o004 != 0 && os.Link(path, to) == nil {
		return to, nil
	}
	return to, copyFile(to, path)
}

// forgetImages removes what reachable has made of files that are in no store any
// more, or that were copied, and that nobody used for a day. A machine that runs
// has them open.
func forgetImages() error {
	entries, err := os.ReadDir(imagesDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading %s: %w", imagesDir, err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || time.Since(info.ModTime()) < 24*time.Hour {
			continue
		}
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Nlink > 1 {
			continue
		}
		if err := os.Remove(filepath.Join(imagesDir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing an old image: %w", err)
		}
	}
	return nil
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.CreateTemp(filepath.Dir(to), ".part-*")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Chmod(0o444), out.Close()); err != nil {
		return fmt.Errorf("copying %s to where QEMU can read it: %w", from, err)
	}
	return os.Rename(out.Name(), to)
}

// addTap makes a tap in this network namespace, which libvirt opens by its name.
func addTap(name string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	tap := &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR}
	if err := netlink.LinkAdd(tap); err != nil {
		return fmt.Errorf("making the tap %s: %w", name, err)
	}
	// Nothing but the machine's own frames: no address, no question.
	os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0)
	return nil
}

// moveTap moves it, down, to the network namespace of a process.
func moveTap(name string, pid int) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("finding the tap %s: %w", name, err)
	}
	if err := netlink.LinkSetDown(link); err != nil {
		return fmt.Errorf("taking the tap %s down: %w", name, err)
	}
	if err := netlink.LinkSetNsPid(link, pid); err != nil {
		return fmt.Errorf("moving the tap %s: %w", name, err)
	}
	return nil
}

// removeTaps removes the taps of a lease that were not moved yet.
func removeTaps(lease string) error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("listing links: %w", err)
	}
	var errs []error
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, lease+"-") {
			if err := netlink.LinkDel(l); err != nil && !errors.As(err, &netlink.LinkNotFoundError{}) && !errors.Is(err, unix.ENODEV) {
				errs = append(errs, fmt.Errorf("removing the tap %s: %w", l.Attrs().Name, err))
			}
		}
	}
	return errors.Join(errs...)
}

// dialPort connects to a channel of a machine, which QEMU listens on.
func dialPort(ctx context.Context, path string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", path)
}

// pipeSuffix ends the names of pipes that libvirt reads templates from.
const pipeSuffix = "state"

// endPipes wakes a libvirt that waits at a pipe of a lease for a bj that has died.
func endPipes(dir string) {
	pipes, _ := filepath.Glob(filepath.Join(dir, "*-"+pipeSuffix))
	for _, path := range pipes {
		if f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0); err == nil {
			f.Close()
		}
	}
}

// killEmulators ends the QEMU processes of a lease directly, for when libvirt
// does not: a machine is never left running because its manager is not.
func killEmulators(ctx context.Context, lease string) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("listing processes: %w", err)
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err == nil && strings.Contains(string(line), "\x00guest="+lease+"-") {
			pids = append(pids, pid)
			unix.Kill(pid, unix.SIGKILL)
		}
	}
	for _, pid := range pids {
		for unix.Kill(pid, 0) == nil && !zombie(pid) {
			select {
			case <-ctx.Done():
				return fmt.Errorf("waiting for QEMU %d to end: %w", pid, ctx.Err())
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
	return nil
}

// zombie reports whether a process is dead and waits for its parent.
func zombie(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	return strings.HasPrefix(rest, "Z")
}
