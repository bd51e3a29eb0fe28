package ns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// stage is where the first process of a machine builds its root: a memory file
// system mounted over a folder that every host has and that holds no source.
const stage = "/sys"

// hostTops are the top-level folders of the host that a machine sees,
// read-only below and memory above. Where one is a symbolic link (as /bin is
// on most hosts), the machine has the same link.
var hostTops = []string{"usr", "etc", "bin", "sbin", "lib", "lib32", "lib64", "libx32"}

// hostBase is the host's own root.
func hostBase() (base, error) { return readBase("/", hostTops) }

func readBase(dir string, tops []string) (base, error) {
	b := base{Dir: dir, Links: map[string]string{}}
	for _, top := range tops {
		path := filepath.Join(dir, top)
		fi, err := os.Lstat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return base{}, fmt.Errorf("reading the root: %w", err)
		case fi.IsDir():
			b.Tops = append(b.Tops, top)
		case fi.Mode()&fs.ModeSymlink != 0:
			if b.Links[top], err = os.Readlink(path); err != nil {
				return base{}, fmt.Errorf("reading the root: %w", err)
			}
		}
	}
	return b, nil
}

// folders are made empty on every machine.
var folders = []struct {
	path string
	mode os.FileMode
}{
	{"proc", 0o555}, {"sys", 0o555}, {"dev", 0o755},
	{"run", 0o755}, {"run/lock", 0o1777}, {"tmp", 0o1777},
	{"root", 0o700}, {"home", 0o755}, {"mnt", 0o755}, {"opt", 0o755}, {"srv", 0o755}, {"media", 0o755},
	{"var", 0o755}, {"var/cache", 0o755}, {"var/lib", 0o755}, {"var/lib/misc", 0o755}, {"var/local", 0o755},
	{"var/log", 0o755}, {"var/mail", 0o775}, {"var/opt", 0o755}, {"var/spool", 0o755}, {"var/tmp", 0o1777},
	{"usr/local", 0o755}, {"usr/local/bin", 0o755}, {"usr/local/sbin", 0o755}, {"usr/local/lib", 0o755},
	{"usr/local/etc", 0o755}, {"usr/local/share", 0o755}, {"etc", 0o755},
}

// hostFolders are folders of the host's in which programs are put: as for
// folders, but an image is left as it is.
var hostFolders = []string{"usr", "usr/bin", "usr/sbin", "usr/lib", "usr/share"}

var links = map[string]string{
	"var/run":  "/run",
	"var/lock": "/run/lock",
}

var devices = []string{"null", "zero", "full", "random", "urandom", "tty"}

// trees are the mounted sources of a machine's root.
type trees struct {
	base   map[string]*os.File // by top-level folder: detached mounts of the base's, mapped; none where the path itself will do
	layers []*os.File          // detached mounts of layers, mapped; none where the paths will do
	binds  []*os.File          // detached mounts of the folders of bound files, mapped; none where the paths will do
	doors  []*os.File          // sockets, to be bound when the root stands
	units  *os.File            // detached mount of the machine's cgroup; nil without
}

// buildRoot makes the machine's root file system and moves the calling process
// into it. It must be called in a mount namespace of the machine's own.
func buildRoot(m machineConfig, r rootConfig, t trees, machineID string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	opts := "mode=0755"
	if m.Disk > 0 {
		opts += fmt.Sprintf(",size=%d", m.Disk)
	}
	if err := unix.Mount("tmpfs", stage, "tmpfs", 0, opts); err != nil {
		return fmt.Errorf("mounting memory for the root: %w", err)
	}
	b := &rootBuilder{root: stage + "/root", id: machineID, m: m, r: r, t: t}
	for _, dir := range []string{b.root, stage + "/up", stage + "/scratch", stage + "/lower", stage + "/layer", stage + "/source", stage + "/bind", stage + "/empty"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("making %s: %w", dir, err)
		}
	}
	if err := unix.Mount(b.root, b.root, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("binding the root: %w", err)
	}
	for _, f := range []func() error{b.mountLayers, b.mountTops, b.makeFolders, b.mountDev, b.mountKernel, b.mountBinds} {
		if err := f(); err != nil {
			return err
		}
	}
	if err := os.Chdir(b.root); err != nil {
		return fmt.Errorf("entering the root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("changing the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leaving the host's root: %w", err)
	}
	return os.Chdir("/")
}

type rootBuilder struct {
	root   string
	id     string // /etc/machine-id
	m      machineConfig
	r      rootConfig
	t      trees
	layers []string // paths of mounted layers, the first on top
}

func (b *rootBuilder) mountLayers() error {
	if len(b.t.layers) == 0 {
		b.layers = b.m.Layers
		return nil
	}
	for i, f := range b.t.layers {
		path := fmt.Sprintf("%s/layer/%d", stage, i)
		if err := os.Mkdir(path, 0o755); err != nil {
			return fmt.Errorf("making %s: %w", path, err)
		}
		if err := moveMount(f, path); err != nil {
			return fmt.Errorf("mounting the layer %s: %w", b.m.Layers[i], err)
		}
		b.layers = append(b.layers, path)
	}
	return nil
}

// mountTops lays memory over layers over the host's folders.
func (b *rootBuilder) mountTops() error {
	if !b.m.Base.host() {
		return b.mountImage()
	}
	lower := map[string][]string{}
	var order []string
	add := func(top, path string) {
		if len(lower[top]) == 0 {
			order = append(order, top)
		}
		lower[top] = append(lower[top], path)
	}
	linked := map[string]bool{}
	for top, target := range b.m.Base.Links {
		if err := os.Symlink(target, filepath.Join(b.root, top)); err != nil {
			return fmt.Errorf("linking /%s: %w", top, err)
		}
		linked[top] = true
	}
	for _, layer := range b.layers {
		entries, err := os.ReadDir(layer)
		if err != nil {
			return fmt.Errorf("reading the layer %s: %w", layer, err)
		}
		for _, e := range entries {
			switch {
			case linked[e.Name()]:
				return fmt.Errorf("laying %s over the root: it has a folder /%s, which is a link here", layer, e.Name())
			case e.IsDir():
				add(e.Name(), filepath.Join(layer, e.Name()))
			}
		}
	}
	for _, top := range b.m.Base.Tops {
		path := filepath.Join(b.m.Base.Dir, top)
		if f := b.t.base[top]; f != nil {
			path = stage + "/lower/" + top
			if err := os.Mkdir(path, 0o755); err != nil {
				return fmt.Errorf("making %s: %w", path, err)
			}
			if err := moveMount(f, path); err != nil {
				return fmt.Errorf("mounting /%s of the base: %w", top, err)
			}
		}
		add(top, path)
	}
	for _, top := range order {
		if err := b.overlay(top, lower[top]); err != nil {
			return err
		}
	}
	return nil
}

func (b *rootBuilder) overlay(top string, lower []string) error {
	upper, scratch, target := stage+"/up/"+top, stage+"/scratch/"+top, filepath.Join(b.root, top)
	for _, dir := range []string{upper, scratch, target} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("making %s: %w", dir, err)
		}
	}
	// Folders that belong to the machine's root from the start: of the host's
	// own it could not change one where ids are not mapped.
	for _, f := range folders {
		if f.path == top || strings.HasPrefix(f.path, top+"/") {
			if err := makeFolder(filepath.Join(stage, "up", f.path), f.mode); err != nil {
				return err
			}
		}
	}
	for _, path := range hostFolders {
		if path == top || strings.HasPrefix(path, top+"/") {
			if err := makeFolder(filepath.Join(stage, "up", path), 0o755); err != nil {
				return err
			}
		}
	}
	if top == "etc" {
		if err := hide(b.r.Hidden, upper, lower); err != nil {
			return err
		}
		if err := b.writeEtcFiles(upper); err != nil {
			return err
		}
	}
	err := mountOver(top, slices.Clone(lower), upper, scratch, target)
	from := filepath.Join(b.m.Base.Dir, top)
	i := slices.Index(lower, from)
	if !errors.Is(err, unix.EINVAL) || i < 0 {
		return err
	}
	// An ordinary user lays nothing over a folder below which something else is
	// mounted, as engines of containers do with files of /etc. A copy will do.
	if lower[i] = stage + "/lower/" + top; copyTop(from, lower[i]) != nil {
		return err
	}
	return mountOver(top, lower, upper, scratch, target)
}

// maxCopied bounds what is copied of a folder of the host, in MiB.
const maxCopied = 64

// copyTop copies what may be read of a folder of the host into memory of its own.
func copyTop(from, to string) error {
	if err := os.Mkdir(to, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", to, "tmpfs", 0, fmt.Sprintf("mode=0755,size=%dm", maxCopied)); err != nil {
		return err
	}
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		target := to + strings.TrimPrefix(path, from)
		switch {
		case errors.Is(err, fs.ErrPermission):
			return nil
		case err != nil || path == from:
			return err
		case d.Type() == fs.ModeSymlink:
			link, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return os.Symlink(link, target)
		case !d.IsDir() && !d.Type().IsRegular():
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.Mkdir(target, info.Mode().Perm()|0o700)
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrPermission) {
			return nil
		}
		if err != nil {
			return err
		}
		return os.WriteFile(target, data, info.Mode().Perm())
	})
}

// mountOver mounts upper over the lower folders, the first on top.
func mountOver(top string, lower []string, upper, scratch, target string) error {
	for i, l := range lower {
		lower[i] = escapeLower(l)
	}
	opts := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,userxattr", strings.Join(lower, ":"), upper, scratch)
	if err := unix.Mount("overlay", target, "overlay", 0, opts); err != nil {
		return fmt.Errorf("mounting memory over /%s: %w", top, err)
	}
	return nil
}

// escapeLower writes a path as the option lowerdir of an overlay takes it.
func escapeLower(path string) string {
	return strings.NewReplacer(`\`, `\\`, ":", `\:`, ",", `\,`).Replace(path)
}

// hide makes whiteouts in upper for each path, relative to it, that exists in
// one of the lower folders, with the folders that lead there.
func hide(paths []string, upper string, lower []string) error {
	for _, path := range paths {
		if err := copyParents(filepath.Dir(path), upper, lower); err != nil {
			return err
		}
		err := unix.Mknod(filepath.Join(upper, path), unix.S_IFCHR, 0)
		if err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, unix.ENOTDIR) {
			return fmt.Errorf("hiding /etc/%s: %w", path, err)
		}
	}
	return nil
}

// copyParents makes dir in upper with the mode that it has in lower. A parent
// that is hidden itself makes that an error of kind ENOTDIR, which means that
// all below is hidden too.
func copyParents(dir, upper string, lower []string) error {
	if dir == "." {
		return nil
	}
	if err := copyParents(filepath.Dir(dir), upper, lower); err != nil {
		return err
	}
	mode := os.FileMode(0o755)
	for _, l := range lower {
		if fi, err := os.Stat(filepath.Join(l, dir)); err == nil {
			mode = fi.Mode().Perm()
			break
		}
	}
	err := os.Mkdir(filepath.Join(upper, dir), mode)
	if err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, unix.ENOTDIR) {
		return fmt.Errorf("making /etc/%s: %w", dir, err)
	}
	return nil
}

func makeFolder(path string, mode os.FileMode) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return fmt.Errorf("making %s: %w", path, err)
	}
	// Chmod, since a mask may apply and MkdirAll has no sticky bit.
	perm := mode.Perm()
	if mode&0o1000 != 0 {
		perm |= os.ModeSticky
	}
	if err := os.Chmod(path, perm); err != nil {
		return fmt.Errorf("setting the mode of %s: %w", path, err)
	}
	return nil
}

func (b *rootBuilder) makeFolders() error {
	if !b.m.Base.host() {
		return b.makeImageFolders()
	}
	for _, f := range folders {
		path := filepath.Join(b.root, f.path)
		if _, err := os.Lstat(path); err == nil {
			continue // part of an overlay
		}
		if err := makeFolder(path, f.mode); err != nil {
			return err
		}
	}
	for name, target := range links {
		if err := os.Symlink(target, filepath.Join(b.root, name)); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("linking /%s: %w", name, err)
		}
	}
	return nil
}

// writeEtcFiles writes what every machine has of its own into the upper folder
// of /etc, before it is mounted: there an existing file of the host is covered
// even where it could not be changed.
func (b *rootBuilder) writeEtcFiles(upper string) error {
	for _, f := range []struct {
		name, text string
		mode       os.FileMode
	}{
		{"hosts", b.r.Hosts, 0o644},
		{"hostname", b.m.Name + "\n", 0o644},
		{"resolv.conf", b.r.Resolv, 0o644},
		{"shadow", b.r.Shadow, 0o600},
		{"machine-id", b.id + "\n", 0o444},
		{"mtab", "", 0},
	} {
		if f.name == "shadow" && !b.m.Base.host() {
			continue // an image's accounts are its own
		}
		path := filepath.Join(upper, f.name)
		os.Remove(path) // a whiteout, perhaps
		if f.name == "mtab" {
			if err := os.Symlink("/proc/self/mounts", path); err != nil {
				return fmt.Errorf("linking /etc/mtab: %w", err)
			}
			continue
		}
		if err := os.WriteFile(path, []byte(f.text), f.mode); err != nil {
			return fmt.Errorf("writing /etc/%s: %w", f.name, err)
		}
	}
	return nil
}

func (b *rootBuilder) mountDev() error {
	dev := filepath.Join(b.root, "dev")
	if err := unix.Mount("tmpfs", dev, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0755,size=65536k"); err != nil {
		return fmt.Errorf("mounting /dev: %w", err)
	}
	for _, name := range devices {
		path := filepath.Join(dev, name)
		if err := os.WriteFile(path, nil, 0o666); err != nil {
			return fmt.Errorf("making /dev/%s: %w", name, err)
		}
		if err := unix.Mount("/dev/"+name, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("binding /dev/%s: %w", name, err)
		}
	}
	for name, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx"} {
		if err := os.Symlink(target, filepath.Join(dev, name)); err != nil {
			return fmt.Errorf("linking /dev/%s: %w", name, err)
		}
	}
	shm := "mode=1777"
	if b.m.Memory > 0 { // else half of the host's
		shm += fmt.Sprintf(",size=%d", b.m.Memory/2)
	}
	for _, m := range []struct {
		name, kind, opts string
		flags            uintptr
	}{
		{"pts", "devpts", "newinstance,ptmxmode=0666,mode=0620", unix.MS_NOSUID | unix.MS_NOEXEC},
		{"shm", "tmpfs", shm, unix.MS_NOSUID | unix.MS_NODEV},
		{"mqueue", "mqueue", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	} {
		path := filepath.Join(dev, m.name)
		if err := os.Mkdir(path, 0o755); err != nil {
			return fmt.Errorf("making /dev/%s: %w", m.name, err)
		}
		if err := unix.Mount(m.kind, path, m.kind, m.flags, m.opts); err != nil && m.kind != "mqueue" {
			return fmt.Errorf("mounting /dev/%s: %w", m.name, err)
		}
	}
	return nil
}

// mountKernel mounts the kernel's file systems, those of the machine's own
// namespaces.
func (b *rootBuilder) mountKernel() error {
	const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("proc", filepath.Join(b.root, "proc"), "proc", quiet, ""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	sys := filepath.Join(b.root, "sys")
	if err := unix.Mount("sysfs", sys, "sysfs", quiet|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("mounting /sys: %w", err)
	}
	if b.t.units != nil {
		if err := moveMount(b.t.units, filepath.Join(sys, "fs/cgroup")); err != nil {
			return fmt.Errorf("mounting /sys/fs/cgroup: %w", err)
		}
	}
	return nil
}

// mountBinds puts single files of the host into the root, read-only.
func (b *rootBuilder) mountBinds() error {
	for i, bind := range b.m.Binds {
		target, err := secureTarget(b.root, bind.Path)
		if err != nil {
			return fmt.Errorf("placing %s: %w", bind.Path, err)
		}
		// A read-only mount could be mounted again for writing by the machine's
		// root. An overlay without an upper folder cannot be written by anyone.
		dir, lower := fmt.Sprintf("%s/bind/%d", stage, i), filepath.Dir(bind.Source)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("making %s: %w", dir, err)
		}
		if i < len(b.t.binds) {
			lower = fmt.Sprintf("%s/source/%d", stage, i)
			if err := os.Mkdir(lower, 0o755); err != nil {
				return fmt.Errorf("making %s: %w", lower, err)
			}
			if err := moveMount(b.t.binds[i], lower); err != nil {
				return fmt.Errorf("mounting the folder of %s: %w", bind.Path, err)
			}
		}
		opts := fmt.Sprintf("lowerdir=%s:%s,userxattr", escapeLower(lower), stage+"/empty")
		if err := unix.Mount("overlay", dir, "overlay", unix.MS_RDONLY, opts); err != nil {
			return fmt.Errorf("mounting %s: %w", bind.Path, err)
		}
		if err := unix.Mount(filepath.Join(dir, filepath.Base(bind.Source)), target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("binding %s: %w", bind.Path, err)
		}
	}
	return nil
}

// secureTarget makes an empty file at path below root, following links only
// inside root, and returns its path on the host.
func secureTarget(root, path string) (string, error) {
	r, err := os.OpenRoot(root)
	if err != nil {
		return "", err
	}
	defer r.Close()
	rel := strings.TrimPrefix(filepath.Clean("/"+path), "/")
	if err := r.MkdirAll(filepath.Dir(rel), 0o755); err != nil {
		return "", err
	}
	f, err := r.OpenFile(rel, os.O_CREATE|os.O_RDONLY, 0o755)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
}

// moveMount puts a detached mount at target, and closes it: a descriptor that
// stayed open would be a way around the root.
func moveMount(f *os.File, target string) error {
	defer f.Close()
	return unix.MoveMount(int(f.Fd()), "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// errUnmapped is of file systems whose ids cannot be mapped, such as the overlay
// that is the root of most containers.
var errUnmapped = errors.New("this file system cannot be mounted with mapped ids")

// cloneShared is cloneTree, but where ids cannot be mapped the tree belongs to
// nobody in the machine: it is read as everyone may, and what lies over it
// belongs to the machine, as it does for ordinary users.
func cloneShared(path string, userns *os.File) (*os.File, error) {
	f, err := cloneTree(path, userns)
	if !errors.Is(err, errUnmapped) {
		return f, err
	}
	if f, err = cloneTree(path, nil); err != nil {
		return nil, err
	}
	if err := unix.MountSetattr(int(f.Fd()), "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		f.Close()
		return nil, fmt.Errorf("making the mount of %s read-only: %w", path, err)
	}
	return f, nil
}

// cloneTree returns a detached mount of path. Where userns is given, its ids
// are mapped to those of that user namespace and it is read-only: what lies
// below an overlay need not be writable, and is the host's.
func cloneTree(path string, userns *os.File) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cloning the mount of %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	if userns == nil {
		return f, nil
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP | unix.MOUNT_ATTR_RDONLY, Userns_fd: uint64(userns.Fd())}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		f.Close()
		if errors.Is(err, unix.EINVAL) {
			err = errUnmapped
		}
		return nil, fmt.Errorf("mapping the ids of %s: %w", path, err)
	}
	return f, nil
}
