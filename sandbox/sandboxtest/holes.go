package sandboxtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"bj/sandbox"
)

// Holes opens a hub's rules in the ways that canaries must notice, for
// Options.Holes. The hub is the network namespace of the gateway, whose pid it is
// told.
func Holes(gateway func(sandbox.Environment) int) map[string]func(testing.TB, sandbox.Environment) {
	return map[string]func(testing.TB, sandbox.Environment){
		"the hub without rules": func(t testing.TB, env sandbox.Environment) {
			inside(t, gateway(env), "nft", "flush", "ruleset")
		},
		"the hub without judgement": func(t testing.TB, env sandbox.Environment) {
			for _, chain := range []string{"arrive", "decide", "pass"} {
				inside(t, gateway(env), "nft", "insert", "rule", "inet", "bj_hub", chain, "accept")
			}
		},
		"UDP to a neighbour": func(t testing.TB, env sandbox.Environment) {
			for _, chain := range []string{"decide", "pass"} {
				inside(t, gateway(env), "nft", "insert", "rule", "inet", "bj_hub", chain, "ip", "daddr", "198.18.0.11", "meta", "l4proto", "udp", "accept")
			}
		},
	}
}

func namespaces(pid int) []string {
	args := []string{"-t", strconv.Itoa(pid), "-n"}
	if os.Geteuid() != 0 {
		args = append(args, "-U", "--preserve-credentials")
	}
	return append(args, "--")
}

// inside runs a program in the network namespace of a process, as its owner.
func inside(t testing.TB, pid int, args ...string) {
	t.Helper()
	out, err := exec.Command("nsenter", append(namespaces(pid), args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v: %s", args, err, out)
	}
}

// Witness returns a packet socket on a link in the network namespace of a
// process, for Options.Outside; nil as an ordinary user.
func Witness(t testing.TB, pid int, link string) *os.File {
	if os.Geteuid() != 0 {
		return nil // the canaries' counter of the same link has to do
	}
	type made struct {
		fd  int
		err error
	}
	done := make(chan made)
	var enter func()
	enter = func() {
		runtime.LockOSThread() // and never unlock: the thread ends
		if unix.Gettid() == unix.Getpid() {
			// But the first thread does not, and stands for the process.
			go enter()
			return
		}
		fd, err := func() (int, error) {
			ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
			if err != nil {
				return 0, err
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return 0, err
			}
			fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0x0300)
			if err != nil {
				return 0, err
			}
			index, err := func() (int, error) {
				ifr, err := unix.NewIfreq(link)
				if err != nil {
					return 0, err
				}
				err = unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifr)
				return int(ifr.Uint32()), err
			}()
			if err == nil {
				err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: 0x0300, Ifindex: index})
			}
			return fd, errors.Join(err)
		}()
		done <- made{fd, err}
	}
	go enter()
	m := <-done
	if m.err != nil {
		t.Fatalf("watching the witness link: %v", m.err)
	}
	return os.NewFile(uintptr(m.fd), "witness")
}
