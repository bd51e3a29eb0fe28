package libvirt

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bj/sandbox"
	"bj/sandbox/agent"
	"bj/sandbox/hub"
)

// guestMain is the first process of a virtual machine. It ends with the machine.
func guestMain() {
	powerOff(guest())
}

// powerOff ends the machine, and says why on its console.
func powerOff(err error) {
	if err != nil {
		os.WriteFile("/dev/console", []byte("bj: error: "+err.Error()+"\n"), 0)
	}
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

// portDeadline bounds the wait for a port or disk to appear, and for bj at its
// other end.
const portDeadline = 60 * time.Second

func guest() error {
	for _, m := range []struct{ kind, path string }{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		if err := unix.Mount(m.kind, m.path, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mounting %s: %w", m.path, err)
		}
	}
	for _, set := range []string{"early", "late"} {
		if err := loadModules("/modules/" + set); err != nil {
			return err
		}
	}
	os.RemoveAll("/modules")
	ctl, err := openPort(controlPort)
	if err != nil {
		return err
	}
	channel, err := openPort(agentPort)
	if err != nil {
		return err
	}
	g := &machine{channel: channel, ended: make(chan error, 2)}
	go func() { g.ended <- g.serve(ctl) }()
	if err := <-g.ended; !errors.Is(err, errBeside) {
		return err
	}
	return g.handOver(ctl)
}

// machine is the guest's side of the control channel.
type machine struct {
	channel  *os.File
	identity identity
	inside   *hub.Inside
	first    *firstProcess // where the agent is beside an init system
	ended    chan error
}

// errBeside says that the agent is to go on beside the machine's init system.
var errBeside = errors.New("the agent is to go on in a process of its own")

func (g *machine) serve(ctl *os.File) error {
	out := json.NewEncoder(ctl)
	if err := out.Encode(greeting{Ready: rand.Text()}); err != nil {
		return fmt.Errorf("greeting bj: %w", err)
	}
	lines := bufio.NewScanner(ctl)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var r request
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return fmt.Errorf("reading a request: %w", err)
		}
		result, err := g.handle(r)
		if errors.Is(err, errBeside) {
			return err // who goes on answers
		}
		var answer response
		if err == nil {
			answer.Result, err = json.Marshal(result)
		}
		if err != nil {
			answer = response{Error: err.Error()}
		}
		if err := out.Encode(answer); err != nil {
			return fmt.Errorf("answering bj: %w", err)
		}
	}
	// Without bj there is no machine.
	return lines.Err()
}

func (g *machine) handle(r request) (any, error) {
	if r.Method == "become" {
		var id identity
		if err := json.Unmarshal(r.Params, &id); err != nil {
			return nil, err
		}
		return nil, g.become(id)
	}
	if g.inside == nil {
		return nil, errors.New("the machine does not know yet who it is")
	}
	switch r.Method {
	case "clock":
		var now int64
		if err := json.Unmarshal(r.Params, &now); err != nil {
			return nil, err
		}
		return nil, setClock(now)
	case "seal":
		var p sandbox.Policy
		if err := json.Unmarshal(r.Params, &p); err != nil {
			return nil, err
		}
		return nil, g.inside.Seal(p)
	case "expect":
		var keys []hub.CanaryKey
		if err := json.Unmarshal(r.Params, &keys); err != nil {
			return nil, err
		}
		g.inside.Expect(keys)
		return nil, nil
	case "flows":
		return g.inside.Flows()
	case "rules":
		return g.inside.Rules()
	case "begin":
		if g.first == nil {
			return nil, errors.New("the machine has no init system")
		}
		return nil, g.first.begin()
	}
	return nil, fmt.Errorf("the machine knows no %q", r.Method)
}

// become makes the machine the one that id says, and starts its agent.
func (g *machine) become(id identity) error {
	if g.inside != nil {
		return errors.New("it is somebody already")
	}
	if err := addEntropy(id.Entropy); err != nil {
		return fmt.Errorf("adding entropy: %w", err)
	}
	if err := setClock(id.Clock); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(id.Name)); err != nil {
		return fmt.Errorf("setting the host name: %w", err)
	}
	if err := hub.Quiet(); err != nil {
		return err
	}
	if err := setMAC(id.MAC); err != nil {
		return err
	}
	if err := buildRoot(id); err != nil {
		return err
	}
	if id.Systemd {
		g.identity = id
		return errBeside
	}
	return g.run(id)
}

// setClock sets the clock to Unix nanoseconds.
func setClock(now int64) error {
	tv := unix.NsecToTimeval(now)
	if err := unix.Settimeofday(&tv); err != nil {
		return fmt.Errorf("setting the clock: %w", err)
	}
	return nil
}

// run starts the agent of a machine whose root is there.
func (g *machine) run(id identity) error {
	const cgroups = "/sys/fs/cgroup"
	opts := agent.Options{CgroupRoot: cgroups, Apart: id.Apart, OOMEvents: "/proc/vmstat"}
	if id.Apart {
		// Mounted nowhere from here on: the agent alone has it.
		fd, err := unix.Open(cgroups, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("opening %s: %w", cgroups, err)
		}
		if err := unix.Unmount(cgroups, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmounting %s: %w", cgroups, err)
		}
		opts.CgroupRoot = fmt.Sprintf("/proc/self/fd/%d", fd)
	}
	g.inside = &hub.Inside{Name: id.Name, Index: id.Index, V4: id.V4, V6: id.V6, Cgroup: opts.CgroupRoot}
	if g.first != nil {
		opts.Watched = g.first.watched
	}
	go func() { g.ended <- agent.Serve(context.Background(), g.channel, opts) }()
	return nil
}

// setMAC gives the machine's link, which is down, its address.
func setMAC(text string) error {
	mac, err := net.ParseMAC(text)
	if err != nil {
		return fmt.Errorf("setting the MAC: %w", err)
	}
	eth, err := netlink.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("finding eth0: %w", err)
	}
	if bytes.Equal(eth.Attrs().HardwareAddr, mac) {
		return nil
	}
	if err := netlink.LinkSetHardwareAddr(eth, mac); err != nil {
		return fmt.Errorf("setting the MAC: %w", err)
	}
	return nil
}

// loadModules loads the modules that the file names, in that order.
func loadModules(list string) error {
	data, err := os.ReadFile(list)
	if err != nil {
		return fmt.Errorf("reading the list of modules: %w", err)
	}
	for _, path := range strings.Fields(string(data)) {
		f, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("loading a module: %w", err)
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("loading %s: %w", path, err)
		}
	}
	return nil
}

// await polls until f has something, or the deadline has passed.
func await(what string, f func() (bool, error)) error {
	for deadline := time.Now().Add(portDeadline); ; time.Sleep(2 * time.Millisecond) {
		if ok, err := f(); ok || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("waiting for %s: not within %s", what, portDeadline)
		}
	}
}

// openPort opens the virtio-serial port of that name when bj is at its other end.
func openPort(name string) (*os.File, error) {
	var f *os.File
	err := await("the port "+name, func() (bool, error) {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, path := range names {
			if data, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(data)) != name {
				continue
			}
			var err error
			f, err = os.OpenFile("/dev/"+filepath.Base(filepath.Dir(path)), os.O_RDWR|unix.O_NONBLOCK, 0)
			if errors.Is(err, fs.ErrNotExist) {
				return false, nil
			}
			return err == nil, err
		}
		return false, nil
	})
	if err != nil {
		return nil, err
	}
	// Without the other end every read is an end of file.
	err = await("bj at the port "+name, func() (bool, error) {
		fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLOUT}}
		unix.Poll(fds, 0)
		return fds[0].Revents&unix.POLLHUP == 0 && fds[0].Revents&unix.POLLOUT != 0, nil
	})
	if err != nil {
		return nil, err
	}
	// Fd made it a blocking file.
	return f, unix.SetNonblock(int(f.Fd()), true)
}

// addEntropy gives the kernel fresh random bytes, and makes it use them.
func addEntropy(b []byte) error {
	const reseed = 0x5207 // RNDRESEEDCRNG
	f, err := os.OpenFile("/dev/random", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	pool := make([]byte, 8+len(b)) // struct rand_pool_info
	binary.NativeEndian.PutUint32(pool, uint32(8*len(b)))
	binary.NativeEndian.PutUint32(pool[4:], uint32(len(b)))
	copy(pool[8:], b)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&pool[0]))); errno != 0 {
		return errno
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), reseed, 0); errno != 0 {
		return errno
	}
	return nil
}

// mountRoot mounts what the root is made of, at /root: squashfs disks that are
// read-only, with memory above; or the root on a disk of somebody else's, which
// is written to, unless something is laid over it.
func mountRoot(id identity) error {
	var lower []string
	for i := range id.Layers + 1 {
		// The root is the first disk; layers follow, and lie above it.
		dev, dir := "/dev/vd"+string(rune('a'+i)), fmt.Sprintf("/lower/%d", i)
		if err := await(dev, func() (bool, error) { _, err := os.Stat(dev); return err == nil, nil }); err != nil {
			return err
		}
		if id.onWhole() {
			return mountWhole(dev, "/root")
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("making %s: %w", dir, err)
		}
		if i == 0 && id.Whole {
			if err := mountWhole(dev, dir); err != nil {
				return err
			}
		} else if err := unix.Mount(dev, dir, "squashfs", unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("mounting %s: %w", dev, err)
		}
		if i > 0 {
			lower = append(lower, dir)
		}
	}
	lower = append(lower, "/lower/0")
	opts := "mode=0755"
	if id.Disk > 0 {
		opts += fmt.Sprintf(",size=%d", id.Disk)
	}
	if err := unix.Mount("tmpfs", "/upper", "tmpfs", 0, opts); err != nil {
		return fmt.Errorf("mounting memory for the root: %w", err)
	}
	for _, dir := range []string{"/upper/files", "/upper/work"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("making %s: %w", dir, err)
		}
	}
	if err := unix.Mount("overlay", "/root", "overlay", 0, "lowerdir="+strings.Join(lower, ":")+",upperdir=/upper/files,workdir=/upper/work"); err != nil {
		return fmt.Errorf("mounting the root: %w", err)
	}
	// What is written to /tmp is written to the disk, and bounded as that is.
	for _, dir := range []string{"/upper/tmp", "/root/tmp"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("making %s: %w", dir, err)
		}
	}
	if err := unix.Mount("/upper/tmp", "/root/tmp", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mounting /tmp: %w", err)
	}
	if err := unix.Mount("", "/root/tmp", "", unix.MS_BIND|unix.MS_REMOUNT|quietMount, ""); err != nil {
		return fmt.Errorf("mounting /tmp: %w", err)
	}
	return nil
}

// quietMount is for what holds neither devices nor programs of other users.
const quietMount = unix.MS_NOSUID | unix.MS_NODEV

// buildRoot mounts the root, makes it this machine's, and moves there.
func buildRoot(id identity) error {
	if err := mountRoot(id); err != nil {
		return err
	}
	if id.Whole {
		if err := forgetIdentity("/root"); err != nil {
			return err
		}
	}
	for _, dir := range []string{"dev", "proc", "sys", "run", "tmp", "root", "home", "mnt", "opt", "srv", "var/tmp", "var/log", "var/lib", "var/cache", "etc"} {
		if err := os.MkdirAll("/root/"+dir, 0o755); err != nil {
			return fmt.Errorf("making /%s: %w", dir, err)
		}
	}
	for dir, mode := range map[string]os.FileMode{"tmp": 0o777 | os.ModeSticky, "var/tmp": 0o777 | os.ModeSticky, "root": 0o700} {
		if err := os.Chmod("/root/"+dir, mode); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{"hosts": id.Hosts, "hostname": id.Name + "\n", "resolv.conf": id.Resolv, "machine-id": id.MachineID + "\n"} {
		path := "/root/etc/" + name
		os.Remove(path) // a link, perhaps
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return fmt.Errorf("writing /etc/%s: %w", name, err)
		}
	}
	os.Remove("/root/etc/mtab")
	if err := os.Symlink("/proc/self/mounts", "/root/etc/mtab"); err != nil {
		return fmt.Errorf("linking /etc/mtab: %w", err)
	}
	for _, dir := range []string{"/dev", "/proc", "/sys"} {
		if err := unix.Mount(dir, "/root"+dir, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("moving %s: %w", dir, err)
		}
	}
	if err := os.Chdir("/root"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("moving the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("entering the root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	type mount struct {
		kind, path, opts string
		flags            uintptr
	}
	size := ""
	if id.Memory > 0 {
		size = fmt.Sprintf(",size=%d", id.Memory/2)
	}
	mounts := []mount{
		{"tmpfs", "/run", "mode=0755" + size, quietMount},
		{"devpts", "/dev/pts", "ptmxmode=0666,mode=0620,gid=5", unix.MS_NOSUID | unix.MS_NOEXEC},
		{"tmpfs", "/dev/shm", "mode=1777" + size, quietMount},
		{"mqueue", "/dev/mqueue", "", quietMount | unix.MS_NOEXEC},
		{"cgroup2", "/sys/fs/cgroup", "", quietMount | unix.MS_NOEXEC},
	}
	if id.onWhole() { // which is another's, and not empty
		mounts = append(mounts, mount{"tmpfs", "/tmp", "mode=1777" + size, quietMount})
	}
	for _, m := range mounts {
		if err := os.MkdirAll(m.path, 0o755); err != nil && m.kind != "cgroup2" {
			return fmt.Errorf("making %s: %w", m.path, err)
		}
		if err := unix.Mount(m.kind, m.path, m.kind, m.flags, m.opts); err != nil && m.kind != "mqueue" {
			return fmt.Errorf("mounting %s: %w", m.path, err)
		}
	}
	if err := os.MkdirAll("/run/lock", 0o755); err != nil {
		return err
	}
	if err := os.Chmod("/run/lock", 0o777|os.ModeSticky); err != nil {
		return err
	}
	for name, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(target, "/dev/"+name); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("linking /dev/%s: %w", name, err)
		}
	}
	if id.Systemd {
		if to, err := filepath.EvalSymlinks("/sbin/init"); err != nil || filepath.Base(to) != "systemd" {
			return errors.New("the image has no systemd at /sbin/init")
		}
	}
	if _, err := os.Stat("/bin/sh"); err != nil {
		return errors.New("the image has no /bin/sh")
	}
	return nil
}
