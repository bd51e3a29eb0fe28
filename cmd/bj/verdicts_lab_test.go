package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// hostSecret is in files of the lab that no machine may see.
const hostSecret = "HOST-SECRET-5e2f"

// labUser is the ordinary user.
const labUser = 1234

// A lab is a host in which bj runs: the network and the mounts of one thread,
// so that nothing of this machine's is touched, and every link, route, rule and
// mount that is left behind shows. It has production servers that greet whoever
// comes, and note it; files that nobody may see; and sockets of daemons.
type lab struct {
	t       *testing.T
	calls   chan func()
	program string
	dirs    []string
	cache   string // where it has this machine's cache, for virtual machines
	before  labState

	mu   sync.Mutex
	seen map[string]bool // "tcp 192.0.2.10 7000"
	came int
}

// labAddresses are production's, and labPorts those that it listens on, by tcp
// and udp.
var (
	labAddresses = []string{"192.0.2.10", "192.0.2.11", "198.51.100.1", "198.51.100.2", "2001:db8:1::10", "2001:db8:1::11", "127.0.0.1", "::1"}
	labPorts     = []int{7000, 7001, 8000, 8001, 8002, 8003}
)

// labAllowed is what some recipe of testdata/verdicts allows: nobody may come to
// anything else.
var labAllowed = []string{
	"tcp 192.0.2.10 7000", "udp 192.0.2.10 7001", "tcp 192.0.2.10 8000", "tcp 192.0.2.10 8001", "tcp 192.0.2.10 8002", "udp 192.0.2.10 8000", "udp 192.0.2.10 8001",
	"tcp 198.51.100.1 7000", "tcp 198.51.100.2 7000", "tcp 2001:db8:1::10 7000", "udp 2001:db8:1::10 7001", "unix /run/daemon.sock",
	"dns web.lab.internal", // bj itself asks for the names of conditions, before it leases
}

// labApart is what only recipes allow whose conditions are for some units, which
// needs root.
var labApart = []string{
	"http GET /stable/a", "http PUT /in/a", "http GET /other", "tls web.lab.internal", "tcp 203.0.113.10 7000", "dns far.lab.internal",
}

// staticBJ is the program bj as it is shipped, built once for all tests.
var staticBJ = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "bj-verdicts-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path, err := staticAgent(context.Background(), dir, func(string) {})
	if err != nil {
		return nil, err
	}
	return os.ReadFile(path)
})

// newLab opens a lab that lives as long as the test.
func newLab(t *testing.T) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a host of one's own, with a network, needs root")
	}
	program, err := staticBJ()
	if err != nil {
		t.Fatal(err)
	}
	// What is left behind is found by its program, so each lab has its own.
	own := filepath.Join(openDir(t), "bj")
	if err := os.WriteFile(own, program, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatalf("adopting orphans: %v", err)
	}
	l := &lab{t: t, calls: make(chan func()), program: own, seen: map[string]bool{}}
	if *inMachines {
		l.cache = openDir(t)
	}
	ready := make(chan error, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with its namespaces
		ready <- unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_FS)
		for f := range l.calls {
			f()
		}
	}()
	t.Cleanup(func() { close(l.calls); <-done })
	if err := <-ready; err != nil {
		t.Fatalf("unsharing: %v", err)
	}
	l.do(func() {
		l.mounts()
		l.network()
		l.serveNames()
		l.serveWeb()
		l.serveFar()
		l.before = l.state()
	})
	if t.Failed() {
		t.FailNow()
	}
	return l
}

// do calls f on the lab's thread; f must not call t.FailNow.
func (l *lab) do(f func()) {
	done := make(chan struct{})
	l.calls <- func() { defer close(done); f() }
	<-done
}

func (l *lab) must(what string, err error) {
	if err != nil {
		l.t.Errorf("%s: %v", what, err)
	}
}

// mounts hides this machine's folders behind those of somebody with secrets.
func (l *lab) mounts() {
	l.must("making mounts private", unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	if *inMachines {
		// Images are made of what the network has, which the lab has not.
		dir, err := new(env{getenv: os.Getenv}).cacheDir()
		l.must("finding the cache", err)
		l.must("mounting the cache", unix.Mount(dir, l.cache, "", unix.MS_BIND, ""))
	}
	for _, dir := range []string{"/root", "/home", "/run", "/mnt", "/srv", "/var/lib", "/var/tmp", "/var/log"} {
		l.must("mounting "+dir, unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755"))
	}
	l.must("removing what a killed test has left", os.RemoveAll("/tmp/bj-verdicts-host"))
	for _, path := range []string{
		"/root/.ssh/id_ed25519", "/home/alice/.aws/credentials", "/run/secrets/token", "/mnt/backup/passwords",
		"/srv/data", "/var/lib/vault/unseal", "/var/tmp/dump", "/var/log/auth.log", "/tmp/bj-verdicts-host/note",
	} {
		l.must("making a secret", os.MkdirAll(filepath.Dir(path), 0o755))
		l.must("writing a secret", os.WriteFile(path, []byte(hostSecret+"\n"), 0o644))
	}
	l.t.Cleanup(func() { os.RemoveAll("/tmp/bj-verdicts-host") })
}

// network makes production: addresses on loopback, and servers.
func (l *lab) network() {
	lo, err := netlink.LinkByName("lo")
	l.must("finding lo", err)
	if err != nil {
		return
	}
	l.must("raising lo", netlink.LinkSetUp(lo))
	for _, a := range labAddresses {
		addr := netip.MustParseAddr(a)
		if addr.IsLoopback() {
			continue
		}
		prefix := netip.PrefixFrom(addr, addr.BitLen())
		parsed, err := netlink.ParseAddr(prefix.String())
		l.must("parsing "+a, err)
		parsed.Flags = unix.IFA_F_NODAD
		l.must("adding "+a, netlink.AddrAdd(lo, parsed))
		// The kernel gives a new IPv6 address its route in the background.
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			routes, err := netlink.RouteGet(addr.AsSlice())
			if err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL {
				break
			}
			if time.Now().After(deadline) {
				l.t.Errorf("%s did not become this host's own: %v", a, err)
				break
			}
		}
	}
	l.must("letting everyone ping", os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0o644))
	for _, a := range labAddresses {
		for _, port := range labPorts {
			l.serveTCP(a, port)
			l.serveUDP(a, port)
		}
	}
	for _, name := range []string{"@bj-verdicts", "/run/daemon.sock", "/tmp/bj-verdicts-host/daemon.sock"} {
		s, err := net.Listen("unix", name)
		l.must("listening on "+name, err)
		if err != nil {
			continue
		}
		if name[0] == '/' {
			l.must("opening "+name, os.Chmod(name, 0o777))
		}
		l.accept(s, "unix "+name)
	}
}

func (l *lab) serveTCP(host string, port int) {
	s, err := net.Listen("tcp", net.JoinHostPort(host, fmt.Sprint(port)))
	l.must("listening", err)
	if err == nil {
		l.accept(s, fmt.Sprintf("tcp %s %d", host, port))
	}
}

func (l *lab) accept(s net.Listener, name string) {
	l.t.Cleanup(func() { s.Close() })
	go func() {
		for {
			c, err := s.Accept()
			if err != nil {
				return
			}
			l.note(name)
			go func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(time.Minute))
				fmt.Fprintf(c, "production %s\n", name)
			}()
		}
	}()
}

func (l *lab) serveUDP(host string, port int) {
	s, err := net.ListenPacket("udp", net.JoinHostPort(host, fmt.Sprint(port)))
	l.must("listening", err)
	if err != nil {
		return
	}
	l.t.Cleanup(func() { s.Close() })
	name := fmt.Sprintf("udp %s %d", host, port)
	go func() {
		buf := make([]byte, 2000)
		for {
			_, from, err := s.ReadFrom(buf)
			if err != nil {
				return
			}
			l.note(name)
			s.WriteTo([]byte("production "+name+"\n"), from)
		}
	}()
}

func (l *lab) note(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen[name] = true
	l.came++
}

// visits returns how often somebody came.
func (l *lab) visits() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.came
}

// contacts returns who came.
func (l *lab) contacts() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var names []string
	for name := range l.seen {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// checkContacts compares who came with what recipes allow: all of it, and
// nothing beside it.
func (l *lab) checkContacts(asRoot bool) {
	l.t.Helper()
	labAllowed := labAllowed
	if asRoot {
		labAllowed = slices.Concat(labAllowed, labApart)
	}
	if *inMachines { // which have no sockets of the host
		labAllowed = slices.DeleteFunc(slices.Clone(labAllowed), func(c string) bool { return strings.HasPrefix(c, "unix ") })
	}
	for _, c := range l.contacts() {
		if !slices.Contains(labAllowed, c) {
			l.t.Errorf("%s was reached, and no recipe allows it", c)
		}
	}
	for _, c := range labAllowed {
		if !slices.Contains(l.contacts(), c) {
			l.t.Errorf("%s was not reached, and a recipe needs it", c)
		}
	}
}

// openDir returns a folder that everyone can read, for as long as the test.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "bj-verdicts-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// folder returns one with home, tmp and cache, which belongs to whom bj runs as.
func (l *lab) folder(t *testing.T, asRoot bool) string {
	t.Helper()
	dir := openDir(t)
	l.dirs = append(l.dirs, dir)
	for _, name := range []string{"", "home", "tmp", "cache"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
		if !asRoot {
			if err := os.Chown(path, labUser, labUser); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

// bj returns a command that runs bj in the lab, as root or not. The host's
// environment has a secret, too.
func (l *lab) bj(ctx context.Context, t *testing.T, asRoot bool, dir string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(ctx, l.program, args...)
	cmd.Args[0] = "bj"
	cmd.Env = []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=" + filepath.Join(dir, "home"), "TMPDIR=" + filepath.Join(dir, "tmp"),
		"BJ_CACHE=" + filepath.Join(dir, "cache"), "HOST_TOKEN=" + hostSecret, "http_proxy=http://192.0.2.11:7000", "SSH_AUTH_SOCK=/run/daemon.sock",
	}
	if *inMachines {
		cmd.Env = append(cmd.Env, "BJ_CACHE="+l.cache)
	}
	if !asRoot {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: labUser, Gid: labUser}}
	}
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// startLibvirt starts a libvirt of the lab's own, if one is wanted.
func (l *lab) startLibvirt() {
	l.t.Helper()
	if !*inMachines {
		return
	}
	for _, name := range []string{"virtlogd", "libvirtd"} {
		cmd := exec.Command(name)
		if err := l.start(cmd); err != nil {
			l.t.Fatalf("starting %s: %v", name, err)
		}
		l.t.Cleanup(func() {
			cmd.Process.Signal(syscall.SIGTERM)
			cmd.Wait()
		})
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		cmd := exec.Command("virsh", "-c", "qemu:///system", "version")
		err := l.start(cmd)
		if err == nil {
			err = cmd.Wait()
		}
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("waiting for libvirt: %v", err)
		}
	}
	l.do(func() { l.before = l.state() })
	// This process adopts the emulators, and libvirt waits until somebody has buried
	// those that it ends.
	stop := make(chan struct{})
	l.t.Cleanup(func() { close(stop) })
	go func() {
		for tick := time.Tick(50 * time.Millisecond); ; {
			select {
			case <-tick:
			case <-stop:
				return
			}
			dirs, _ := filepath.Glob("/proc/[0-9]*")
			for _, dir := range dirs {
				stat, err := os.ReadFile(dir + "/stat")
				if err != nil || !bytes.Contains(stat, []byte("(qemu-system-")) {
					continue
				}
				if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil {
					unix.Wait4(pid, nil, unix.WNOHANG, nil) // an error for another's child
				}
			}
		}
	}()
}

// start starts a command in the lab.
func (l *lab) start(cmd *exec.Cmd) (err error) {
	l.do(func() { err = cmd.Start() })
	return err
}

// labState is what of the lab bj must not change.
type labState struct{ mounts, links, routes, rules, tables, settings string }

// state looks at it, on the lab's thread.
func (l *lab) state() labState {
	read := func(path string) string {
		data, err := os.ReadFile(path)
		l.must("reading", err)
		return string(data)
	}
	s := labState{mounts: read("/proc/thread-self/mountinfo"), routes: read("/proc/thread-self/net/route")}
	for line := range strings.Lines(read("/proc/thread-self/net/ipv6_route")) {
		if f := strings.Fields(line); len(f) == 10 { // without how often it was used
			s.routes += strings.Join(append(f[:6], f[8:]...), " ") + "\n"
		}
	}
	links, err := netlink.LinkList()
	l.must("listing links", err)
	for _, x := range links {
		s.links += x.Attrs().Name + " "
	}
	rules, err := netlink.RuleList(netlink.FAMILY_ALL)
	l.must("listing rules", err)
	for _, x := range rules {
		s.rules += x.String() + "\n"
	}
	conn, err := nftables.New()
	l.must("opening nftables", err)
	if err == nil {
		tables, err := conn.ListTables()
		l.must("listing tables", err)
		for _, x := range tables {
			s.tables += x.Name + " "
		}
	}
	h := sha256.New()
	for _, dir := range []string{"/proc/sys/net/ipv4", "/proc/sys/net/ipv6", "/proc/sys/net/core"} {
		filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				if data, err := os.ReadFile(path); err == nil {
					fmt.Fprintf(h, "%s %s\n", path, data)
				}
			}
			return nil
		})
	}
	s.settings = fmt.Sprintf("%x", h.Sum(nil))
	return s
}

// running returns the processes of this lab's bj, and those of its environments
// that have outlived it and so became this process's own children.
func (l *lab) running() (found []string) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		stat, err := os.ReadFile(dir + "/stat")
		if err != nil {
			continue
		}
		// pid (comm) state ppid ...
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		args, _ := os.ReadFile(dir + "/cmdline")
		exe, _ := os.Readlink(dir + "/exe")
		orphan := fields[1] == fmt.Sprint(os.Getpid()) && bytes.HasPrefix(args, []byte("bj\x00__"))
		if fields[0] != "Z" && (orphan || strings.HasPrefix(exe, l.program)) {
			found = append(found, filepath.Base(dir)+" "+strings.ReplaceAll(string(args), "\x00", " "))
		}
	}
	return found
}

// leftovers returns what is not as it was, or carries the name of a lease.
func (l *lab) leftovers(leases []string) (left []string) {
	l.do(func() {
		now := l.state()
		for _, x := range []struct{ what, before, now string }{
			{"mounts", l.before.mounts, now.mounts}, {"links", l.before.links, now.links}, {"routes", l.before.routes, now.routes},
			{"rules", l.before.rules, now.rules}, {"tables", l.before.tables, now.tables}, {"settings", l.before.settings, now.settings},
		} {
			if x.before != x.now {
				left = append(left, fmt.Sprintf("%s: before\n%s\nnow\n%s", x.what, x.before, x.now))
			}
		}
		files, _ := filepath.Glob("/run/bj/*")
		if *inMachines { // whether KVM works is known for a while
			files, _ = filepath.Glob("/run/bj/libvirt/[!k]*/*")
		}
		hidden, _ := filepath.Glob("/run/bj/.bj-*")
		left = append(append(left, files...), hidden...)
	})
	for _, dir := range l.dirs {
		filepath.WalkDir(filepath.Join(dir, "tmp"), func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				left = append(left, path)
			}
			return nil
		})
	}
	for _, p := range l.running() {
		left = append(left, "process "+p)
	}
	for _, name := range leases {
		for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
			dirs, _ := filepath.Glob(pattern + name)
			left = append(left, dirs...)
		}
	}
	return left
}

// checkLeftovers holds that something was leased, and nothing is left of it.
func (l *lab) checkLeftovers(leases []string) {
	l.t.Helper()
	if len(leases) == 0 {
		l.t.Error("nothing was leased")
	}
	l.nothingLeft(leases)
}

// nothingLeft waits until everything is as it was.
func (l *lab) nothingLeft(leases []string) {
	l.t.Helper()
	var left []string
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if left = l.leftovers(leases); len(left) == 0 {
			return
		}
	}
	l.t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
}
