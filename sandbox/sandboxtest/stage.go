package sandboxtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	stageCommand = "sandboxtest-stage"
	guestCommand = "sandboxtest-guest"

	stageEnv  = "BJ_SANDBOXTEST_STAGE"  // JSON of stageConfig, for the stage
	stagedEnv = "BJ_SANDBOXTEST_STAGED" // asRoot or asUser, for the tests in it

	asRoot = "root"
	asUser = "user"
)

// An ordinary user that has nothing, not even an account.
const ordinaryID = 1234

// staged says as whom this process runs tests in a stage; "" outside of one.
func staged() string { return os.Getenv(stagedEnv) }

type stageConfig struct {
	Who  string
	Etc  string // a copy of /etc, which takes its place
	Args []string
	Keep []string // folders that stay what they are
}

// Addresses of the stage's own network, in ranges for documentation.
var (
	hostV4 = netlinkAddr("203.0.113.1/24")
	hostV6 = netlinkAddr("2001:db8:fe::1/64")
)

func netlinkAddr(s string) *netlink.Addr {
	a, err := netlink.ParseAddr(s)
	if err != nil {
		panic(err)
	}
	a.Flags = unix.IFA_F_NODAD
	if a.IP.To4() != nil {
		a.Flags = 0
	}
	return a
}

// wireFile is the descriptor of the packet socket that sees all of the stage's
// network.
const wireFile = 3

// runStaged runs the calling test once more in a stage, and takes over its
// verdict.
func runStaged(t *testing.T, who string, keep []string) {
	if who == asRoot && os.Geteuid() != 0 {
		t.Skip("this needs root")
	}
	// Not the test's own folder, which others may not enter.
	dir, err := os.MkdirTemp("", "bj-stage-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	config := stageConfig{Who: who, Etc: filepath.Join(dir, "etc"), Args: testArgs(t), Keep: keep}
	if err := copyTree(config.Etc, "/etc"); err != nil {
		t.Fatal(err)
	}
	tmp := filepath.Join(dir, "tmp")
	if err := os.Mkdir(tmp, 0o755); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 && who == asUser {
		if err := os.Chown(tmp, ordinaryID, ordinaryID); err != nil {
			t.Fatal(err)
		}
	}
	encoded, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if d, ok := t.Deadline(); ok {
		ctx, cancel = context.WithDeadline(ctx, d.Add(-2*time.Second))
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", stageCommand)
	cmd.Env = append(os.Environ(), stageEnv+"="+string(encoded), stagedEnv+"="+who, "TMPDIR="+tmp)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET,
		Pdeathsig:  syscall.SIGKILL,
	}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if testing.Verbose() {
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	}
	err = cmd.Run()
	if cmd.Process == nil {
		t.Skipf("making a stage: %v", err)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	if !testing.Verbose() && !strings.Contains(out.String(), "PASS") {
		t.Fatalf("nothing ran:\n%s", out.String())
	}
}

// testArgs are the flags of this test program for the one in the stage, which
// runs the calling test and those below it that were asked for.
func testArgs(t *testing.T) []string {
	pattern := ""
	var args []string
	flag.Visit(func(f *flag.Flag) {
		switch name := strings.TrimPrefix(f.Name, "test."); name {
		case "run":
			pattern = f.Value.String()
		case "v", "failfast", "short", "timeout":
			args = append(args, "-"+f.Name+"="+f.Value.String())
		}
	})
	run := ""
	for part := range strings.SplitSeq(t.Name(), "/") {
		run += "^" + part + "$/"
	}
	if parts := strings.Split(pattern, "/"); len(parts) > 2 {
		run += strings.Join(parts[2:], "/")
	}
	return append(args, "-test.run="+strings.TrimSuffix(run, "/"))
}

// stageMain is the first process of a stage: it makes it, starts the tests in
// it, and reaps what is left of them. It returns the exit code.
func stageMain() int {
	var config stageConfig
	if err := json.Unmarshal([]byte(os.Getenv(stageEnv)), &config); err != nil {
		fmt.Fprintln(os.Stderr, "reading the stage's configuration:", err)
		return 2
	}
	wire, err := makeStage(config)
	if err != nil {
		fmt.Fprintln(os.Stderr, "making the stage:", err)
		return 2
	}
	attr := &syscall.ProcAttr{Files: []uintptr{0, 1, 2, uintptr(wire)}, Sys: &syscall.SysProcAttr{}}
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, stageEnv+"=") && !strings.HasPrefix(e, "XDG_RUNTIME_DIR=") {
			attr.Env = append(attr.Env, e)
		}
	}
	if config.Who == asUser {
		if idMapped(ordinaryID) {
			attr.Sys.Credential = &syscall.Credential{Uid: ordinaryID, Gid: ordinaryID}
		} else {
			// Root of the stage is an ordinary user outside of it: so are its tests.
			attr.Sys.Cloneflags = unix.CLONE_NEWUSER
			attr.Sys.UidMappings = []syscall.SysProcIDMap{{ContainerID: ordinaryID, HostID: 0, Size: 1}}
			attr.Sys.GidMappings = []syscall.SysProcIDMap{{ContainerID: ordinaryID, HostID: 0, Size: 1}}
		}
	}
	pid, err := syscall.ForkExec("/proc/self/exe", append([]string{os.Args[0]}, config.Args...), attr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "starting the tests:", err)
		return 2
	}
	for {
		var ws unix.WaitStatus
		got, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			fmt.Fprintln(os.Stderr, "waiting for the tests:", err)
			return 2
		case got == pid && ws.Signaled():
			fmt.Fprintln(os.Stderr, "the tests were ended by", ws.Signal())
			return 2
		case got == pid:
			return ws.ExitStatus()
		}
	}
}

func idMapped(id int) bool {
	data, _ := os.ReadFile("/proc/self/uid_map")
	f := strings.Fields(string(data))
	return len(f) == 3 && f[2] != "1"
}

// stageFolders are memory on a stage, writable for everyone. The folder for
// temporary files stays, since this program may lie there.
var stageFolders = []string{"/root", "/home", "/run", "/srv", "/opt", "/mnt", "/var"}

func makeStage(config stageConfig) (wire int, err error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return 0, fmt.Errorf("making mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return 0, fmt.Errorf("mounting /proc: %w", err)
	}
	kept := map[string]int{}
	for _, dir := range config.Keep {
		fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return 0, fmt.Errorf("keeping %s: %w", dir, err)
		}
		defer unix.Close(fd)
		kept[dir] = fd
	}
	for _, dir := range stageFolders {
		err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, fmt.Errorf("mounting %s: %w", dir, err)
		}
	}
	for _, dir := range []string{"/var/lib", "/var/tmp", "/var/cache"} {
		if err := os.Mkdir(dir, 0o777); err != nil {
			return 0, err
		}
		os.Chmod(dir, 0o1777)
	}
	if err := os.Symlink("/run", "/var/run"); err != nil {
		return 0, err
	}
	for dir, fd := range kept {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return 0, err
		}
		if err := unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return 0, fmt.Errorf("keeping %s: %w", dir, err)
		}
	}
	if err := plantEtc(config.Etc); err != nil {
		return 0, err
	}
	if err := unix.Mount(config.Etc, "/etc", "", unix.MS_BIND, ""); err != nil {
		return 0, fmt.Errorf("binding /etc: %w", err)
	}
	if err := makeNetwork(); err != nil {
		return 0, fmt.Errorf("making the network: %w", err)
	}
	return packetSocket()
}

// etcSecret is in every file of /etc that no machine may read.
const etcSecret = "planted-secret-of-etc"

// etcPlanted are those files, with their modes.
var etcPlanted = map[string]os.FileMode{
	"resolv.conf":                     0o644,
	"machine-id":                      0o444,
	"hostname":                        0o644,
	"shadow":                          0o640,
	"ssh/ssh_host_ed25519_key":        0o600,
	"ssh/ssh_host_rsa_key":            0o644, // as badly kept as can be
	"ssl/private/app.key":             0o644,
	"app/private.conf":                0o600,
	"app/tls/server.key":              0o644,
	"NetworkManager/system/wifi.conf": 0o644,
	"kubernetes/admin.conf":           0o644,
	"hosts":                           0o644,
	"krb5.keytab":                     0o644,
}

func plantEtc(etc string) error {
	for name, mode := range etcPlanted {
		path := filepath.Join(etc, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		os.Remove(path)
		text := "# " + etcSecret + "\n"
		switch name {
		case "machine-id":
			text = "0123456789abcdef0123456789abcdef\n"
		case "shadow":
			text = "root:$y$" + etcSecret + ":19000:0:99999:7:::\n"
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			return err
		}
	}
	return nil
}

// makeNetwork gives the stage a network as a host has one: loopback, and a
// link with addresses and default routes, whose other end is a witness.
func makeNetwork() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "out0"
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "out1", PeerHardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 2}}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("adding a link: %w", err)
	}
	// No address of its own making: those would come and go by themselves.
	os.WriteFile("/proc/sys/net/ipv6/conf/out1/disable_ipv6", []byte("1"), 0)
	for name, value := range map[string]string{"addr_gen_mode": "1", "router_solicitations": "0", "accept_ra": "0"} {
		os.WriteFile("/proc/sys/net/ipv6/conf/out0/"+name, []byte(value), 0)
	}
	for _, name := range []string{"lo", "out0", "out1"} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("bringing up %s: %w", name, err)
		}
		if name != "out0" {
			continue
		}
		for _, a := range []*netlink.Addr{hostV4, hostV6} {
			if err := netlink.AddrAdd(link, a); err != nil {
				return fmt.Errorf("adding %s: %w", a, err)
			}
			next := append(net.IP(nil), a.IP...)
			next[len(next)-1] = 2
			family, all := netlink.FAMILY_V6, &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
			if next.To4() != nil {
				family, all = netlink.FAMILY_V4, &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
			}
			neigh := &netlink.Neigh{LinkIndex: link.Attrs().Index, Family: family, State: netlink.NUD_PERMANENT, IP: next, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 2}}
			if err := netlink.NeighAdd(neigh); err != nil {
				return fmt.Errorf("adding the neighbour %s: %w", next, err)
			}
			if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: all, Gw: next, Family: family}); err != nil {
				return fmt.Errorf("routing through %s: %w", next, err)
			}
		}
	}
	return nil
}

// copyTree copies what can be read.
func copyTree(to, from string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		rel, rerr := filepath.Rel(from, path)
		if rerr != nil {
			return rerr
		}
		target := filepath.Join(to, rel)
		switch {
		case err != nil && d != nil && d.IsDir():
			return fs.SkipDir
		case err != nil:
			return err
		case d.IsDir():
			return os.MkdirAll(target, 0o755)
		case d.Type()&fs.ModeSymlink != 0:
			link, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return os.Symlink(link, target)
		case d.Type().IsRegular():
			fi, err := d.Info()
			if err != nil {
				return err
			}
			err = copyFile(target, path, fi.Mode().Perm())
			if errors.Is(err, fs.ErrPermission) {
				return nil
			}
			return err
		}
		return nil
	})
}
