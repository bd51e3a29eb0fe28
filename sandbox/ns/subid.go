package ns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"bj/sandbox"
)

// gatewayWaits is the gateway's argument where others write its id maps.
const gatewayWaits = "wait"

// subordinate is what an ordinary user may use beside its own ids, as
// subuid(5), subgid(5) and the programs newuidmap and newgidmap grant it.
type subordinate struct {
	uids, gids       idRange // on the host
	uidProg, gidProg string
}

// findSubordinate returns the user's subordinate ids, or an error that says what
// is missing: ids that are granted, or a program that maps them.
func findSubordinate() (*subordinate, error) {
	id := strconv.Itoa(os.Geteuid())
	names := []string{id}
	if u, err := user.LookupId(id); err == nil {
		names = append(names, u.Username)
	}
	name := names[len(names)-1]
	s := &subordinate{}
	for _, of := range []struct {
		prog, file, flag string
		path             *string
		ids              *idRange
	}{
		{"newuidmap", "/etc/subuid", "--add-subuids", &s.uidProg, &s.uids},
		{"newgidmap", "/etc/subgid", "--add-subgids", &s.gidProg, &s.gids},
	} {
		var err error
		if *of.path, err = exec.LookPath(of.prog); err != nil {
			return nil, &sandbox.Error{Code: sandbox.CodeLimits, Err: fmt.Errorf("%s is not on PATH, which maps subordinate ids", of.prog), Hint: "apt-get install uidmap"}
		}
		if *of.ids = grant(of.file, names); of.ids.Count == 0 {
			return nil, &sandbox.Error{Code: sandbox.CodeLimits, Err: fmt.Errorf("%s grants %s no subordinate ids", of.file, name),
				Hint: fmt.Sprintf("usermod %s 100000-165535 %s", of.flag, name)}
		}
	}
	return s, nil
}

// grant returns the first range that a file grants to one of names.
func grant(path string, names []string) idRange {
	data, err := os.ReadFile(path)
	if err != nil {
		return idRange{}
	}
	for _, line := range strings.Split(string(data), "\n") {
		f := strings.Split(line, ":")
		if len(f) != 3 {
			continue
		}
		first, err1 := strconv.ParseUint(f[1], 10, 32)
		count, err2 := strconv.ParseUint(f[2], 10, 32)
		for _, name := range names {
			if err1 == nil && err2 == nil && f[0] == name && count > 0 {
				return idRange{First: uint32(first), Count: uint32(min(count, 65535))}
			}
		}
	}
	return idRange{}
}

// count is how many ids a machine has: root, which is the user, and those.
func (s *subordinate) count() uint32 { return 1 + min(s.uids.Count, s.gids.Count) }

// give maps the ids of the user namespace of process pid.
func (s *subordinate) give(pid int) error {
	for _, m := range []struct {
		prog string
		own  int
		ids  idRange
	}{{s.uidProg, os.Geteuid(), s.uids}, {s.gidProg, os.Getegid(), s.gids}} {
		out, err := exec.Command(m.prog, strconv.Itoa(pid), "0", strconv.Itoa(m.own), "1",
			"1", fmt.Sprint(m.ids.First), fmt.Sprint(s.count()-1)).CombinedOutput()
		if err != nil {
			return fmt.Errorf("mapping subordinate ids: %w: %s", err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}

// awaitIDs waits, in the gateway, until its ids are mapped, and becomes root of
// its user namespace.
func awaitIDs(fd int) error {
	var one [1]byte
	for {
		n, err := unix.Read(fd, one[:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n != 1 {
			return fmt.Errorf("waiting for ids: %w", errors.Join(err, errors.New("bj is gone")))
		}
		break
	}
	if err := syscall.Setgroups(nil); err != nil {
		return fmt.Errorf("leaving groups: %w", err)
	}
	if err := syscall.Setresgid(0, 0, 0); err != nil {
		return fmt.Errorf("becoming root: %w", err)
	}
	if err := syscall.Setresuid(0, 0, 0); err != nil {
		return fmt.Errorf("becoming root: %w", err)
	}
	// A change of ids takes both away: the signal by which this process dies
	// with bj, and the right to write the id maps of its children.
	runtime.LockOSThread() // the signal is a thread's; this one is the main one's and stays
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("asking to die with bj: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("staying inspectable: %w", err)
	}
	return nil
}

// allCapabilities lists every capability that the kernel knows.
func allCapabilities() []uintptr {
	last := uintptr(unix.CAP_LAST_CAP)
	if data, err := os.ReadFile("/proc/sys/kernel/cap_last_cap"); err == nil {
		if n, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 8); err == nil {
			last = uintptr(n)
		}
	}
	caps := make([]uintptr, 0, last+1)
	for c := uintptr(0); c <= last; c++ {
		caps = append(caps, c)
	}
	return caps
}
