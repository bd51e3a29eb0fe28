package libvirt

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"bj/sandbox/image"
)

// The root of a machine on a disk that somebody else made is where a Linux
// system lies on it: the disk as a whole, or one of its partitions. What that
// system would mount beside it, it gets.

// part is the disk, or a partition.
type part struct {
	dev string // "/dev/vda2"
	vol image.Volume
}

func (p part) String() string {
	kind := p.vol.Kind
	if kind == "" {
		kind = "unknown"
	}
	return fmt.Sprintf("%s (%s)", filepath.Base(p.dev), kind)
}

// kernelKinds are the file systems that are mounted.
var kernelKinds = []string{"ext4", "xfs", "btrfs", "squashfs"}

// subvolumes are where a btrfs has a root, beside its top.
var subvolumes = []string{"", "subvol=@", "subvol=root", "subvol=@rootfs"}

// mountWhole finds the root on a disk, and mounts it at dir.
func mountWhole(dev, dir string) error {
	parts, err := partsOf(dev)
	if err != nil {
		return err
	}
	var seen, failed []string
	for _, p := range parts {
		seen = append(seen, p.String())
		if !slices.Contains(kernelKinds, p.vol.Kind) {
			continue
		}
		options := []string{""}
		if p.vol.Kind == "btrfs" {
			options = subvolumes
		}
		for i, o := range options {
			flags := uintptr(0)
			if p.vol.Kind == "squashfs" {
				flags = unix.MS_RDONLY
			}
			if err := unix.Mount(p.dev, dir, p.vol.Kind, flags, o); err != nil {
				if i == 0 {
					failed = append(failed, fmt.Sprintf("mounting %s: %v", p, err))
				}
				continue
			}
			if isRoot(dir) {
				return mountOthers(dir, parts)
			}
			if err := unix.Unmount(dir, 0); err != nil {
				return fmt.Errorf("letting go of %s: %w", p, err)
			}
		}
	}
	text := "the disk holds no root file system of a Linux: looked at " + strings.Join(seen, ", ")
	return errors.New(strings.Join(append([]string{text}, failed...), "; "))
}

// partsOf lists the partitions of a disk in their order, or the disk itself if
// it has none.
func partsOf(dev string) ([]part, error) {
	name := filepath.Base(dev)
	numbers, err := filepath.Glob("/sys/class/block/" + name + "/" + name + "*/partition")
	if err != nil {
		return nil, err
	}
	var devs []string
	for _, n := range numbers {
		devs = append(devs, "/dev/"+filepath.Base(filepath.Dir(n)))
	}
	slices.SortFunc(devs, func(a, b string) int { return number(a) - number(b) })
	if len(devs) == 0 {
		devs = []string{dev}
	}
	var parts []part
	for _, d := range devs {
		f, err := os.Open(d)
		if err != nil {
			return nil, fmt.Errorf("reading the disk: %w", err)
		}
		parts = append(parts, part{d, image.ReadVolume(f)})
		f.Close()
	}
	return parts, nil
}

var partition = regexp.MustCompile(`^/dev/(?:[a-z]+|nvme\d+n\d+p|mmcblk\d+p)(\d+)$`)

// number is the one of a partition by its device's name; 0 if it is none.
func number(dev string) int {
	if m := partition.FindStringSubmatch(dev); m != nil {
		n, _ := strconv.Atoi(m[1])
		return n
	}
	return 0
}

// isRoot reports whether a Linux system lies in dir. Links are not followed:
// they mean another root.
func isRoot(dir string) bool {
	for _, name := range []string{"etc", "bin", "usr"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			return false
		}
	}
	return true
}

// mountOthers mounts what the root's own fstab has on the same disk.
func mountOthers(root string, parts []part) error {
	r, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer r.Close()
	text, err := r.ReadFile("etc/fstab")
	if err != nil {
		return nil // it needs none
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 3 || strings.HasPrefix(f[0], "#") || !strings.HasPrefix(f[1], "/") || f[1] == "/" {
			continue
		}
		options := strings.Split(append(f, "")[3], ",")
		if slices.Contains(options, "noauto") || isVirtual(f[0], f[2]) {
			continue
		}
		i := slices.IndexFunc(parts, func(p part) bool { return p.is(f[0]) })
		if i < 0 || !slices.Contains(kernelKinds, parts[i].vol.Kind) {
			if slices.Contains(options, "nofail") || f[1] == "/boot" || strings.HasPrefix(f[1], "/boot/") {
				continue // what it boots by elsewhere
			}
			return fmt.Errorf("the disk's /etc/fstab has %s at %s, which is on no partition that can be mounted here", f[0], f[1])
		}
		flags, data := mountOptions(options)
		// The root is nobody's to walk out of: its links are resolved below it.
		if err := r.MkdirAll(strings.TrimPrefix(f[1], "/"), 0o755); err != nil {
			return fmt.Errorf("making %s of the disk's /etc/fstab: %w", f[1], err)
		}
		if err := unix.Mount(parts[i].dev, filepath.Join(root, f[1]), parts[i].vol.Kind, flags, data); err != nil {
			return fmt.Errorf("mounting %s at %s, as the disk's /etc/fstab has it: %w", parts[i], f[1], err)
		}
	}
	return nil
}

// isVirtual says that a line of fstab names nothing on a disk: systemd mounts
// most of it anyway.
func isVirtual(spec, kind string) bool {
	switch kind {
	case "swap", "proc", "sysfs", "tmpfs", "devpts", "devtmpfs", "efivarfs", "cgroup", "cgroup2", "mqueue", "debugfs", "tracefs", "securityfs", "hugetlbfs":
		return true
	}
	return spec == "none" || strings.HasPrefix(spec, "/dev/cdrom") || strings.HasPrefix(spec, "/dev/sr") || strings.HasPrefix(spec, "/dev/fd")
}

// is reports whether spec, of an fstab, names the part.
func (p part) is(spec string) bool {
	spec = strings.ReplaceAll(spec, `"`, "")
	for _, by := range []string{"UUID=", "/dev/disk/by-uuid/"} {
		if v, ok := strings.CutPrefix(spec, by); ok {
			return p.vol.UUID != "" && strings.EqualFold(v, p.vol.UUID)
		}
	}
	for _, by := range []string{"LABEL=", "/dev/disk/by-label/"} {
		if v, ok := strings.CutPrefix(spec, by); ok {
			return p.vol.Label != "" && v == p.vol.Label
		}
	}
	for _, by := range []string{"PARTLABEL=", "/dev/disk/by-partlabel/"} {
		if v, ok := strings.CutPrefix(spec, by); ok {
			text, _ := os.ReadFile("/sys/class/block/" + filepath.Base(p.dev) + "/uevent")
			return strings.Contains(string(text)+"\n", "\nPARTNAME="+v+"\n")
		}
	}
	return number(spec) > 0 && number(spec) == number(p.dev)
}

// mountOptions makes what the kernel takes of what fstab says. Options that
// change how, and not what, are left out.
func mountOptions(options []string) (flags uintptr, data string) {
	known := map[string]uintptr{"ro": unix.MS_RDONLY, "nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC, "noatime": unix.MS_NOATIME}
	var kept []string
	for _, o := range options {
		flags |= known[o]
		if strings.HasPrefix(o, "subvol=") || strings.HasPrefix(o, "subvolid=") {
			kept = append(kept, o)
		}
	}
	return flags, strings.Join(kept, ",")
}

// forgetIdentity removes what an image that was in use has of its own and no two
// machines may share.
func forgetIdentity(root string) error {
	r, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer r.Close()
	names := []string{"var/lib/systemd/random-seed", "var/lib/dbus/machine-id", "var/lib/systemd/credential.secret"}
	if entries, err := os.ReadDir(filepath.Join(root, "etc", "ssh")); err == nil {
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), "ssh_host_") {
				names = append(names, "etc/ssh/"+e.Name())
			}
		}
	}
	for _, name := range names {
		if err := r.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("removing /%s: %w", name, err)
		}
	}
	return nil
}
