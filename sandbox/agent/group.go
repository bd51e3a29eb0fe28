package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A group is everything that one command started, however it forked, changed
// its session or daemonized. Its name is the command's id. Where an init system
// runs beside the agent, each of its units is a group too, which has a folder of
// the init system's and no name.
type group struct {
	unit  string
	name  uint32
	other string
}

// A tracker knows what belongs to which group. There are two: cgroups where
// the agent has a folder for them, marks where it has not.
type tracker interface {
	// prepare sets attr so that what this thread forks next is in gr. The
	// result is called when that is done.
	prepare(gr group, attr *syscall.SysProcAttr) (forked func(), err error)
	// kill kills all of groups, waits until they are gone, and returns how many
	// processes there were.
	kill(groups []group, deadline time.Time) (int, error)
	// sweep forgets those of groups of which nothing lives, and returns them.
	// Their commands have ended. It may put that off.
	sweep(groups []group) []group
	// groupOf returns what a process belongs to.
	groupOf(pid int) (group, bool)
	// others returns the groups of an init system's unit of that name.
	others(unit string) []group
	// close lets go of what the tracker holds.
	close()
}

// errAlive is what remains to be said when the kernel does not let go.
var errAlive = errors.New("processes do not end")

func newTracker(o Options) (tracker, error) {
	if o.CgroupRoot != "" {
		return newCgroups(o.CgroupRoot)
	}
	return newMarks()
}

// pause waits a little longer each time, so that the usual case, in which the
// kernel needs a millisecond, is not made to wait.
func pause(try int) {
	time.Sleep(min(time.Duration(1+try)*200*time.Microsecond, 20*time.Millisecond))
}

// cgroups is the tracker that gives each group a cgroup2 folder. It keeps no
// state but the file system's.
type cgroups struct{ root *os.File }

func newCgroups(root string) (*cgroups, error) {
	f, err := os.Open(root)
	if err != nil {
		return nil, fmt.Errorf("opening the cgroup folder: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
		f.Close()
		return nil, fmt.Errorf("opening the cgroup folder: %s is not on a cgroup2 file system", root)
	}
	return &cgroups{root: f}, nil
}

func (t *cgroups) close() { t.root.Close() }

// UnitFolder is the name of a unit's folder, below Options.CgroupRoot. It may be
// made ahead, and is never removed, so that a rule can match it.
func UnitFolder(unit string) string { return "u-" + unit }

// folder is u-UNIT/c-NAME. The prefixes keep units apart from cgroup's own
// files; all groups of one unit share a parent, which rules can match.
func (gr group) folder() string {
	if gr.other != "" {
		return gr.other
	}
	return path.Join(UnitFolder(gr.unit), "c-"+strconv.FormatUint(uint64(gr.name), 10))
}

func (t *cgroups) prepare(gr group, attr *syscall.SysProcAttr) (func(), error) {
	root := int(t.root.Fd())
	folder := gr.folder()
	err := unix.Mkdirat(root, folder, 0o755)
	if errors.Is(err, unix.ENOENT) {
		if err = unix.Mkdirat(root, path.Dir(folder), 0o755); err == nil {
			err = unix.Mkdirat(root, folder, 0o755)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("making cgroup %s: %w", folder, err)
	}
	fd, err := unix.Openat(root, folder, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening cgroup %s: %w", folder, err)
	}
	attr.UseCgroupFD, attr.CgroupFD = true, fd
	return func() { unix.Close(fd) }, nil
}

func (t *cgroups) kill(groups []group, deadline time.Time) (int, error) {
	n := 0
	var errs []error
	for _, gr := range groups {
		pids, err := t.processes(gr.folder())
		n += len(pids)
		if err == nil {
			err = t.write(path.Join(gr.folder(), "cgroup.kill"), "1")
		}
		if !removed(err) {
			errs = append(errs, err)
		}
	}
	for _, gr := range groups {
		for try := 0; ; try++ {
			b, err := t.read(path.Join(gr.folder(), "cgroup.events"))
			if removed(err) || err == nil && !strings.Contains(string(b), "populated 1") {
				break
			}
			if err == nil && time.Now().After(deadline) {
				err = errAlive
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("waiting for cgroup %s: %w", gr.folder(), err))
				break
			}
			// cgroup.kill passes over a process whose leader has ended while its
			// other threads live; a signal to the process does not.
			if try >= 3 {
				pids, _ := t.processes(gr.folder())
				for _, pid := range pids {
					unix.Kill(pid, unix.SIGKILL)
				}
			}
			pause(try)
		}
	}
	return n, errors.Join(errs...)
}

// sweep removes the folders that are empty, but for those of units.
func (t *cgroups) sweep(groups []group) []group {
	root := int(t.root.Fd())
	var gone []group
	for _, gr := range groups {
		err := unix.Unlinkat(root, gr.folder(), unix.AT_REMOVEDIR)
		if err == nil || errors.Is(err, unix.ENOENT) {
			gone = append(gone, gr)
		}
	}
	return gone
}

// inGroup finds a group's folder in a line of /proc/PID/cgroup, and inOther one
// of an init system. A recipe may have made folders below them.
var (
	inGroup = regexp.MustCompile(`(?m)^0::.*?/u-([^/\n]+)/c-([0-9]+)(?:/|$)`)
	inOther = regexp.MustCompile(`(?m)^0::/((?:[^/\n]+\.slice/)*([^/\n]+\.(?:service|scope|socket|mount|swap)))(?:/|$)`)
)

func (t *cgroups) groupOf(pid int) (group, bool) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return group{}, false
	}
	if m := inGroup.FindSubmatch(b); m != nil {
		n, err := strconv.ParseUint(string(m[2]), 10, 32)
		return group{unit: string(m[1]), name: uint32(n)}, err == nil
	}
	if m := inOther.FindSubmatch(b); m != nil {
		return group{unit: string(m[2]), other: string(m[1])}, true
	}
	return group{}, false
}

// others looks for the folder of a unit in the slices of an init system.
func (t *cgroups) others(unit string) []group {
	if !inOther.MatchString("0::/" + unit) {
		return nil
	}
	var found []group
	var look func(slice string)
	look = func(slice string) {
		f, err := openat(t.root, path.Join(".", slice), unix.O_DIRECTORY)
		if err != nil {
			return
		}
		defer f.Close()
		names, _ := f.Readdirnames(-1)
		for _, name := range names {
			switch p := path.Join(slice, name); {
			case name == unit && slice != "": // beside the slices are groups of commands
				found = append(found, group{unit: unit, other: p})
			case strings.HasSuffix(name, ".slice"):
				look(p)
			}
		}
	}
	look("")
	return found
}

// removed says that a folder was gone before it was opened, or after.
func removed(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV)
}

// processes lists those of a folder and of the folders that they made below.
func (t *cgroups) processes(folder string) ([]int, error) {
	b, err := t.read(path.Join(folder, "cgroup.procs"))
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, s := range strings.Fields(string(b)) {
		if pid, err := strconv.Atoi(s); err == nil && pid > 1 {
			pids = append(pids, pid)
		}
	}
	f, err := openat(t.root, folder, unix.O_DIRECTORY)
	if err != nil {
		return pids, err
	}
	defer f.Close()
	entries, err := f.ReadDir(-1)
	for _, e := range entries {
		if e.IsDir() {
			below, _ := t.processes(path.Join(folder, e.Name()))
			pids = append(pids, below...)
		}
	}
	return pids, err
}

func (t *cgroups) read(name string) ([]byte, error) {
	f, err := openat(t.root, name, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

func (t *cgroups) write(name, value string) error {
	f, err := openat(t.root, name, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(value)
	return err
}

// openat opens name below dir, which need not have a path any more.
func openat(dir *os.File, name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}
