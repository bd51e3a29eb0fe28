package ns

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"bj/sandbox"
	"bj/sandbox/agent"
	"bj/sandbox/hub"
)

// maxPIDs bounds the processes of one machine, so that a fork bomb in it is no
// matter of the host's.
const maxPIDs = 16384

// hierarchies are the places of the host's cgroup file systems where this
// process may make folders. On version 2 all three fields are the same folder.
type hierarchies struct {
	unified string            // version 2; "" without
	at      string            // where that is in the cgroup namespace
	limits  map[string]string // controller → folder; empty where limits cannot be kept
	v2      bool              // limits are version 2's
}

// findHierarchies looks for the cgroup folders that this process may use. That
// there are none is not an error: limits are then not kept.
func findHierarchies() hierarchies {
	h := hierarchies{limits: map[string]string{}}
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return h
	}
	defer mounts.Close()
	own := ownCgroups()
	s := bufio.NewScanner(mounts)
	for s.Scan() {
		// 36 35 98:0 /root /mountpoint opts ... - type source superopts
		left, right, ok := strings.Cut(s.Text(), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 5 || len(r) < 3 {
			continue
		}
		root, point, kind := l[3], l[4], r[0]
		switch kind {
		case "cgroup2":
			if dir := usable(point, root, own[""]); dir != "" {
				h.unified, h.at = dir, filepath.Join(root, strings.TrimPrefix(dir, point))
			}
		case "cgroup":
			for _, c := range strings.Split(r[2], ",") {
				if c != "memory" && c != "cpu" && c != "pids" {
					continue
				}
				if dir := usable(point, root, own[c]); dir != "" {
					h.limits[c] = dir
				}
			}
		}
	}
	if len(h.limits) == 0 && h.unified != "" {
		enabled, err := os.ReadFile(filepath.Join(h.unified, "cgroup.subtree_control"))
		if err == nil {
			h.v2 = true
			for _, c := range strings.Fields(string(enabled)) {
				h.limits[c] = h.unified
			}
		}
	}
	return h
}

// ownCgroups maps each controller ("" for version 2) to the path of the
// process's own cgroup.
func ownCgroups() map[string]string {
	own := map[string]string{}
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return own
	}
	for _, line := range strings.Split(string(data), "\n") {
		f := strings.SplitN(line, ":", 3)
		if len(f) != 3 {
			continue
		}
		for _, c := range strings.Split(f[1], ",") {
			own[c] = f[2]
		}
	}
	return own
}

// usable returns the folder in which machines' cgroups can be made: the root of
// the hierarchy for root, who is bound by nothing there, else the process's own
// cgroup if it was delegated to it.
func usable(point, root, own string) string {
	candidates := []string{point}
	if rel, ok := strings.CutPrefix(own, strings.TrimSuffix(root, "/")); ok {
		candidates = append(candidates, filepath.Join(point, rel))
	}
	for _, dir := range candidates {
		if unix.Access(dir, unix.W_OK) == nil && unix.Access(filepath.Join(dir, "cgroup.procs"), unix.W_OK) == nil {
			return dir
		}
	}
	return ""
}

// folders returns the folders that a lease of that name owns, the topmost only.
func (h hierarchies) folders(name string) []string {
	seen := map[string]bool{}
	var dirs []string
	for _, base := range append([]string{h.unified}, h.limits["memory"], h.limits["cpu"], h.limits["pids"]) {
		if base != "" && !seen[base] {
			seen[base] = true
			dirs = append(dirs, filepath.Join(base, name))
		}
	}
	return dirs
}

// machine makes the cgroups of one machine with its limits, owned by the ids of
// its root, with folders of named units, and returns all of them and the one in
// the unified hierarchy.
func (h hierarchies) machine(lease string, m sandbox.MachineSpec, owner uint32, named []string) (all []string, units string, err error) {
	for _, base := range h.folders(lease) {
		dir := filepath.Join(base, m.Name)
		if err := os.Mkdir(base, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, "", fmt.Errorf("making a cgroup: %w", err)
		}
		if h.v2 {
			for _, c := range []string{"memory", "cpu", "pids"} {
				if h.limits[c] != "" {
					if err := writeCgroup(base, "cgroup.subtree_control", "+"+c); err != nil {
						return nil, "", err
					}
				}
			}
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, "", fmt.Errorf("making a cgroup: %w", err)
		}
		all = append(all, dir)
	}
	if h.unified != "" {
		units = filepath.Join(h.unified, lease, m.Name)
		folders := []string{units}
		for _, u := range named {
			dir := filepath.Join(units, agent.UnitFolder(u))
			if err := os.Mkdir(dir, 0o755); err != nil {
				return nil, "", fmt.Errorf("making the cgroup of the unit %s: %w", u, err)
			}
			folders = append(folders, dir)
		}
		for _, dir := range folders {
			for _, name := range []string{"", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"} {
				if err := os.Chown(filepath.Join(dir, name), int(owner), int(owner)); err != nil {
					return nil, "", fmt.Errorf("giving a cgroup to its machine: %w", err)
				}
			}
		}
	}
	set := func(controller, v1, v1value, v2, v2value string) error {
		base := h.limits[controller]
		if base == "" {
			return nil
		}
		dir := filepath.Join(base, lease, m.Name)
		if h.v2 {
			return writeCgroup(dir, v2, v2value)
		}
		return writeCgroup(dir, v1, v1value)
	}
	const period = 100_000 // µs, the kernel's default
	quota := m.CPUs * period
	for _, l := range []struct{ controller, v1, v1value, v2, v2value string }{
		{"memory", "memory.limit_in_bytes", strconv.FormatInt(m.Memory, 10), "memory.max", strconv.FormatInt(m.Memory, 10)},
		{"cpu", "cpu.cfs_quota_us", strconv.Itoa(quota), "cpu.max", fmt.Sprintf("%d %d", quota, period)},
		{"pids", "pids.max", strconv.Itoa(maxPIDs), "pids.max", strconv.Itoa(maxPIDs)},
	} {
		if err := set(l.controller, l.v1, l.v1value, l.v2, l.v2value); err != nil {
			return nil, "", err
		}
	}
	if h.v2 && h.limits["memory"] != "" {
		// Without swap accounting the file does not exist: nothing to forbid.
		if err := writeCgroup(filepath.Join(h.limits["memory"], lease, m.Name), "memory.swap.max", "0"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, "", err
		}
	}
	return all, units, nil
}

func writeCgroup(dir, name, value string) error {
	if err := os.WriteFile(filepath.Join(dir, name), []byte(value), 0); err != nil {
		return fmt.Errorf("setting %s of %s: %w", name, filepath.Base(dir), err)
	}
	return nil
}

// limited reports which limits are kept.
func (h hierarchies) limited() bool { return h.limits["memory"] != "" && h.limits["cpu"] != "" }

// oomEvents returns the file that counts what the memory limit of a machine
// killed, or "" where no limit is kept.
func (h hierarchies) oomEvents(lease, machine string) string {
	switch {
	case h.limits["memory"] == "":
		return ""
	case h.v2:
		return filepath.Join(h.limits["memory"], lease, machine, "memory.events")
	}
	return filepath.Join(h.limits["memory"], lease, machine, "memory.oom_control")
}

// removeCgroups kills what is left in the folders and removes them, within two
// seconds. Folders that are not there are no error.
func removeCgroups(ctx context.Context, dirs []string) error {
	deadline := time.Now().Add(2 * time.Second)
	for {
		var left error
		for _, dir := range dirs {
			if !strings.HasPrefix(filepath.Base(dir), hub.LeasePrefix) {
				return fmt.Errorf("removing %s: not a lease's", dir)
			}
			if err := removeCgroup(dir); err != nil {
				left = err
			}
		}
		if left == nil || time.Now().After(deadline) || ctx.Err() != nil {
			return left
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func removeCgroup(dir string) error {
	err := unix.Rmdir(dir)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	entries, rerr := os.ReadDir(dir)
	if rerr != nil {
		if errors.Is(rerr, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("reading %s: %w", dir, rerr)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroup(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if pids, rerr := os.ReadFile(filepath.Join(dir, "cgroup.procs")); rerr == nil {
		for _, line := range strings.Fields(string(pids)) {
			var pid int
			// 0 is a process of another namespace, 1 never ours.
			if _, err := fmt.Sscan(line, &pid); err == nil && pid > 1 {
				unix.Kill(pid, unix.SIGKILL)
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing %s: %w", dir, err)
	}
	return nil
}
