package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// searchPath is the PATH of every command.
const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// A user is an entry of the machine's /etc/passwd, with the groups that
// /etc/group gives it.
type user struct {
	name     string
	uid, gid uint32
	groups   []uint32
	home     string
	shell    string
	// setgroups says whether the machine's user namespace allows it: an
	// ordinary user's does not.
	setgroups bool
}

// lookup finds a user by name or number; "" is root, which needs no entry.
func lookup(name string) (user, error) {
	if name == "" {
		name = "root"
	}
	u := user{name: "root", home: "/root", shell: "/bin/sh"}
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return u, fmt.Errorf("reading users: %w", err)
	}
	if !u.find(passwd, name) && name != "root" && name != "0" {
		return u, fmt.Errorf("unknown user %q: not in the machine's /etc/passwd", name)
	}
	groups, err := os.ReadFile("/etc/group")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return u, fmt.Errorf("reading groups: %w", err)
	}
	u.groups = memberOf(groups, u.name, u.gid)
	return u, u.check()
}

// check says what the user namespace cannot represent, and leaves out
// supplementary groups that it cannot.
func (u *user) check() error {
	uids, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return fmt.Errorf("reading user ids: %w", err)
	}
	gids, err := os.ReadFile("/proc/self/gid_map")
	if err != nil {
		return fmt.Errorf("reading group ids: %w", err)
	}
	if !mapped(uids, u.uid) {
		return fmt.Errorf("user %s: id %d does not exist in this machine, which has no more than the id ranges that its owner was given (/etc/subuid)", u.name, u.uid)
	}
	if !mapped(gids, u.gid) {
		return fmt.Errorf("user %s: group id %d does not exist in this machine, which has no more than the id ranges that its owner was given (/etc/subgid)", u.name, u.gid)
	}
	u.groups = slices.DeleteFunc(u.groups, func(g uint32) bool { return !mapped(gids, g) })
	deny, err := os.ReadFile("/proc/self/setgroups")
	u.setgroups = err != nil || strings.TrimSpace(string(deny)) != "deny"
	return nil
}

// find reads the entry of a name or number; the first one counts.
func (u *user) find(passwd []byte, name string) bool {
	for line := range bytes.Lines(passwd) {
		f := strings.Split(strings.TrimRight(string(line), "\n"), ":")
		if len(f) < 7 || f[0] != name && f[2] != name {
			continue
		}
		uid, err := strconv.ParseUint(f[2], 10, 32)
		if err != nil {
			continue
		}
		gid, err := strconv.ParseUint(f[3], 10, 32)
		if err != nil {
			continue
		}
		u.name, u.uid, u.gid, u.home = f[0], uint32(uid), uint32(gid), f[5]
		if f[6] != "" {
			u.shell = f[6]
		}
		return true
	}
	return false
}

// memberOf lists the groups of a user, its own first.
func memberOf(groups []byte, name string, own uint32) []uint32 {
	ids := []uint32{own}
	for line := range bytes.Lines(groups) {
		f := strings.Split(strings.TrimRight(string(line), "\n"), ":")
		if len(f) < 4 || !slices.Contains(strings.Split(f[3], ","), name) {
			continue
		}
		if id, err := strconv.ParseUint(f[2], 10, 32); err == nil && !slices.Contains(ids, uint32(id)) {
			ids = append(ids, uint32(id))
		}
	}
	return ids
}

// mapped says whether id exists according to an id map: lines of first id
// inside, first id outside, count.
func mapped(idMap []byte, id uint32) bool {
	for line := range bytes.Lines(idMap) {
		f := strings.Fields(string(line))
		if len(f) != 3 {
			continue
		}
		first, err1 := strconv.ParseUint(f[0], 10, 32)
		count, err2 := strconv.ParseUint(f[2], 10, 32)
		if err1 == nil && err2 == nil && uint64(id) >= first && uint64(id)-first < count {
			return true
		}
	}
	return false
}

func (u user) credential() *syscall.Credential {
	return &syscall.Credential{Uid: u.uid, Gid: u.gid, Groups: u.groups, NoSetGroups: !u.setgroups}
}

// dir is where the user's commands start: at home, or in / where there is no
// home that the user can enter, as login does.
func (u user) dir() string {
	fi, err := os.Stat(u.home)
	if err != nil || !fi.IsDir() || !filepath.IsAbs(u.home) {
		return "/"
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	switch {
	case !ok || u.uid == 0: // the agent's own user
		ok = unix.Access(u.home, unix.X_OK) == nil
	case st.Uid == u.uid:
		ok = fi.Mode()&0o100 != 0
	case slices.Contains(u.groups, st.Gid):
		ok = fi.Mode()&0o010 != 0
	default:
		ok = fi.Mode()&0o001 != 0
	}
	if !ok {
		return "/"
	}
	return u.home
}

// environment is all that a command gets: nothing of the agent's.
func environment(u user, extra [][]byte) []string {
	env := []string{
		"PATH=" + searchPath,
		"HOME=" + u.home,
		"USER=" + u.name,
		"LOGNAME=" + u.name,
		"SHELL=" + u.shell,
		"LANG=C.UTF-8",
	}
	for _, e := range extra {
		name, _, _ := bytes.Cut(e, []byte("="))
		env = slices.DeleteFunc(env, func(s string) bool { return strings.HasPrefix(s, string(name)+"=") })
		env = append(env, string(e))
	}
	return env
}

// lookPath finds a program as execvp(3) does.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, e := range env {
		path, ok := strings.CutPrefix(e, "PATH=")
		if !ok {
			continue
		}
		for _, dir := range filepath.SplitList(path) {
			p := filepath.Join(dir, name)
			if fi, err := os.Stat(p); err == nil && fi.Mode().IsRegular() && unix.Access(p, unix.X_OK) == nil {
				return p, nil
			}
		}
	}
	return "", fmt.Errorf("executing %s: not found on PATH", name)
}
