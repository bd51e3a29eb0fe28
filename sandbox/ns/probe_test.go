package ns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"bj/sandbox"
)

// plantEnv names a fault for a child of these tests, which prints the parts that
// it finds under it.
const plantEnv = "BJ_TEST_PLANT"

// plants are the faults, by name.
var plants = map[string]func() error{
	"none":         func() error { return nil },
	"no cores":     func() error { return unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}) },
	"ordinary":     func() error { return becomeOrdinary() },
	"no userns":    func() error { return limitTo0("user") },
	"no netns":     func() error { return limitTo0("net") },
	"no netfilter": func() error { return refuse(unix.SYS_SOCKET, 2, unix.NETLINK_NETFILTER, unix.EPROTONOSUPPORT) },
	"no bpf":       func() error { return refuse(unix.SYS_BPF, -1, 0, unix.EPERM) },
	"no seccomp":   func() error { return refuse(unix.SYS_SECCOMP, -1, 0, unix.ENOSYS) },
	"no unshare": func() error {
		return errors.Join(refuse(unix.SYS_CLONE, 0, unix.CLONE_NEWUSER, unix.EPERM), refuse(unix.SYS_CLONE3, -1, 0, unix.ENOSYS))
	},
	"ordinary, a mount": func() error {
		return errors.Join(mountBelowUsr(), becomeOrdinary())
	},
	"ordinary, no cores": func() error {
		return errors.Join(unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}), becomeOrdinary())
	},
	"ordinary, no userns": func() error {
		return errors.Join(limitTo0("user"), becomeOrdinary())
	},
}

// limitTo0 allows no more namespaces of a kind below this process's own.
func limitTo0(kind string) error {
	return os.WriteFile("/proc/sys/user/max_"+kind+"_namespaces", []byte("0"), 0)
}

// mountBelowUsr mounts a file of /usr over itself, for this process alone.
func mountBelowUsr() error {
	const file = "/usr/bin/env"
	return errors.Join(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), unix.Mount(file, file, "", unix.MS_BIND, ""))
}

func becomeOrdinary() error {
	return errors.Join(syscall.Setgroups(nil), syscall.Setresgid(1000, 1000, 1000), syscall.Setresuid(1000, 1000, 1000),
		unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0))
}

// refuse makes a system call fail, as a kernel without it or a container does: all
// of them, or those whose argument has all bits of a value, or is that value if
// they are a socket's protocol, or has no bits at all where that is 0.
func refuse(nr uint32, arg int, value uint32, errno unix.Errno) error {
	ret := func(k uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k}
	}
	load := func(offset int) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: uint32(offset)}
	}
	equal := func(k uint32) unix.SockFilter { // else the next is skipped
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jt: 1}
	}
	allow := ret(unix.SECCOMP_RET_ALLOW)
	p := []unix.SockFilter{load(0), equal(nr), allow}
	if arg >= 0 {
		p = append(p, load(16+8*arg))
		if nr == unix.SYS_CLONE {
			p = append(p, unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: value})
		}
		p = append(p, equal(value), allow)
	}
	p = append(p, ret(unix.SECCOMP_RET_ERRNO|uint32(errno)))
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog))); errno != 0 {
		return errno
	}
	return nil
}

// TestPlanted is the child.
func TestPlanted(t *testing.T) {
	plant := os.Getenv(plantEnv)
	if plant == "" {
		t.Skip("only a child of TestParts has something to do here")
	}
	dir, err := os.MkdirTemp("", "bj-plant-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := errors.Join(os.Chmod(dir, 0o777), plants[plant]()); err != nil {
		t.Fatal(err)
	}
	var list []found
	provider := New(Options{State: dir})
	lease := sandbox.Part{Name: "lease", Err: sandbox.Try(t.Context(), provider, sandbox.Policy{})}
	for _, p := range append(provider.Parts(t.Context(), dir), lease) {
		f := found{Part: p}
		if p.Err != nil {
			var e *sandbox.Error
			if f.Err = p.Err.Error(); errors.As(p.Err, &e) {
				f.Hint = e.Hint
			}
		}
		f.Part.Err = nil
		list = append(list, f)
	}
	if err := json.NewEncoder(os.Stdout).Encode(list); err != nil {
		t.Fatal(err)
	}
}

// Each thing that is missing is said by its own line, with what mends it, and
// nothing else is missing for it but what needs it.
func TestParts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("planting faults needs root")
	}
	here := map[string]bool{} // what this host lacks anyhow
	for _, p := range planted(t, "none") {
		if here[p.Name] = p.Err != ""; p.Err != "" && (p.Vital || p.Hint == "") {
			t.Errorf("without a fault: %s: %s | %s", p.Name, p.Err, p.Hint)
		}
	}
	const untried = "it was not tried, without user namespaces |"
	for name, want := range map[string]string{ // name: error | what mends it
		"ordinary": `
ids: newuidmap is not on PATH | apt-get install uidmap
limits: an ordinary user's machines have all of the host's | run bj as root
only=: an ordinary user has no cgroups | run bj as root`,
		"no userns": `
userns: user namespaces are off | sysctl -w user.max_user_namespaces=15000
overlay: ` + untried + `
seccomp: ` + untried + `
ids: ` + untried + `
only=: user namespaces are off | sysctl -w user.max_user_namespaces=15000
lease: user namespaces are off | sysctl -w user.max_user_namespaces=15000`,
		"no netns": `
userns: net namespaces are off | sysctl -w user.max_net_namespaces=15000
links: net namespaces are off | sysctl -w user.max_net_namespaces=15000
nftables: net namespaces are off | sysctl -w user.max_net_namespaces=15000
relay: net namespaces are off | sysctl -w user.max_net_namespaces=15000
overlay: ` + untried + `
seccomp: ` + untried + `
ids: ` + untried + `
only=: net namespaces are off | sysctl -w user.max_net_namespaces=15000
lease: net namespaces are off | sysctl -w user.max_net_namespaces=15000`,
		"no netfilter": `
nftables: opening netfilter's socket | modprobe -a nf_tables
relay: it was not tried, without nftables |
only=: protocol not supported | modprobe -a
lease: protocol not supported | modprobe -a`,
		"no bpf": `only=: operation not permitted | only= needs a kernel with eBPF for links`,
		"no seccomp": `
seccomp: installing the seccomp filter | run a kernel with seccomp filters
only=: installing the seccomp filter | run a kernel with seccomp filters
lease: installing the seccomp filter | run a kernel with seccomp filters`,
		"no unshare": `
userns: operation not permitted | root lacks a capability
overlay: ` + untried + `
seccomp: ` + untried + `
ids: ` + untried + `
only=: function not implemented | root lacks a capability
lease: function not implemented | root lacks a capability`,
		"ordinary, no userns": `
userns: user namespaces are off | sysctl -w user.max_user_namespaces=15000
links: ` + untried + `
nftables: ` + untried + `
relay: ` + untried + `
overlay: ` + untried + `
seccomp: ` + untried + `
ids: ` + untried + `
limits: an ordinary user's machines have all of the host's | run bj as root
only=: an ordinary user has no cgroups | run bj as root
lease: user namespaces are off | sysctl -w user.max_user_namespaces=15000`,
		"no cores": ``,
		"ordinary, a mount": `
overlay: mounting memory over /usr: invalid argument | an ordinary user can lay nothing over a large folder with a mount in it: umount /usr/
ids: newuidmap is not on PATH | apt-get install uidmap
limits: an ordinary user's machines have all of the host's | run bj as root
only=: an ordinary user has no cgroups | run bj as root
lease: mounting memory over /usr: invalid argument | an ordinary user can lay nothing over a large folder with a mount in it: umount /usr/`,
		"ordinary, no cores": `
ids: newuidmap is not on PATH | apt-get install uidmap
limits: an ordinary user's machines have all of the host's | run bj as root
only=: an ordinary user has no cgroups | run bj as root`,
	} {
		t.Run(name, func(t *testing.T) {
			missing := map[string]string{}
			for line := range strings.Lines(strings.TrimSpace(want)) {
				part, rest, _ := strings.Cut(strings.TrimSpace(line), ": ")
				missing[part] = rest
			}
			for _, p := range planted(t, name) {
				text, mend, _ := strings.Cut(missing[p.Name], " |")
				switch mend = strings.TrimSpace(mend); {
				case here[p.Name]:
				case missing[p.Name] == "" && p.Err != "":
					t.Errorf("%s: %s | %s", p.Name, p.Err, p.Hint)
				case missing[p.Name] != "" && (!strings.Contains(p.Err, text) || !strings.HasPrefix(p.Hint, mend)):
					t.Errorf("%s: %q | %q, want %s", p.Name, p.Err, p.Hint, missing[p.Name])
				}
				delete(missing, p.Name)
			}
			for part := range missing {
				t.Errorf("%s is no part", part)
			}
		})
	}
}

// planted returns the parts as a child finds them under a fault. It lives in a
// user namespace with all of the host's ids, so that it can plant limits that
// nobody else has, where that is the fault; elsewhere in the host's.
func planted(t *testing.T, plant string) []found {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^TestPlanted$")
	cmd.Env = append(os.Environ(), plantEnv+"="+plant, "PATH=/nonexistent")
	if strings.Contains(plant, "userns") || strings.Contains(plant, "netns") {
		all := []syscall.SysProcIDMap{{Size: 1 << 31}}
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: all, GidMappings: all, GidMappingsEnableSetgroups: true}
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if strings.Contains(plant, "a mount") {
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	}
	out, err := cmd.Output()
	line, _, _ := strings.Cut(string(out), "\n")
	var list []found
	if jerr := json.Unmarshal([]byte(line), &list); err != nil || jerr != nil {
		t.Fatal(fmt.Errorf("%w: %s%s", errors.Join(err, jerr), out, stderr.String()))
	}
	return list
}
