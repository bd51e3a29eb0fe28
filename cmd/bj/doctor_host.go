package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"bj/sandbox/image"
	"bj/sandbox/ns"
	"bj/sandbox/pool"
)

// lookAtHost says what this host is, and what room it has.
func (d *doctor) lookAtHost(ctx context.Context) {
	for _, f := range []finding{lookAtSystem(), d.lookAtCache(), d.lookAtDisk()} {
		d.print(ctx, f)
	}
}

// lookAtSystem says what this is.
func lookAtSystem() finding {
	f := finding{name: "system", vital: true}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		f.err = fmt.Errorf("asking the kernel its name: %w", err)
		return f
	}
	user := "root"
	if os.Geteuid() != 0 {
		user = "an ordinary user"
	}
	f.text = fmt.Sprintf("bj %s on %s %s, %s, %s, as %s", version,
		unix.ByteSliceToString(u.Sysname[:]), unix.ByteSliceToString(u.Release[:]), runtime.GOARCH, plural(runtime.NumCPU(), "core"), user)
	return f
}

// lookAtCache says where the cache is, and whether it can be written.
func (d *doctor) lookAtCache() finding {
	f := finding{name: "cache", vital: true, mend: "name a folder that can be written: BJ_CACHE=/var/tmp/bj"}
	dir := d.cache
	if err := os.MkdirAll(dir, 0o755); err != nil {
		f.err = fmt.Errorf("making the cache: %w", err)
		return f
	}
	probe, err := os.CreateTemp(dir, ".doctor-*")
	if err != nil {
		f.err = fmt.Errorf("writing to the cache: %w", err)
		return f
	}
	os.Remove(probe.Name()) // at once, so that it stays behind nobody who is killed
	defer probe.Close()
	f.text = dir
	u, err := newStore(dir, "", defaultSandbox).Usage()
	if err != nil {
		f.err = err
		return f
	}
	f.text += fmt.Sprintf("\ntools and images take %d MiB; beyond %d MiB what was not used for the longest time goes", u.Total()>>20, int64(image.DefaultBound)>>20)
	if templates, err := pool.New(nil, pool.Options{Dir: filepath.Join(dir, "pool", virtualSandbox)}).Status(); err == nil && len(templates) > 0 {
		var sum int64
		for _, t := range templates {
			sum += t.Bytes
		}
		f.text += fmt.Sprintf("\n%s of virtual machines, %d MiB: bj pool status lists them", plural(len(templates), "template"), sum>>20)
	}
	return f
}

// What bj test needs on disk: a little for any recipe, next to nothing for a
// lease, more for the images of virtual machines, in bytes.
const (
	leastDisk   = 64 << 20
	leaseDisk   = 1 << 20
	virtualDisk = 2 << 30
)

// lookAtDisk says how much room there is where bj writes.
func (d *doctor) lookAtDisk() finding {
	f := finding{name: "disk", vital: true}
	var lines []string
	for _, place := range []struct {
		what, dir string
		needs     int64
	}{{"the cache", d.cache, leastDisk}, {"temporary files", os.TempDir(), leastDisk}, {"leases", ns.New(ns.Options{}).State(), leaseDisk}} {
		free, err := room(place.dir)
		if err != nil {
			return finding{name: f.name, vital: true, err: fmt.Errorf("asking how much room there is in %s: %w", place.dir, err)}
		}
		if free < place.needs {
			f.err = errors.Join(f.err, fmt.Errorf("%s, for %s, has %d MiB left, and %d are needed", place.dir, place.what, free>>20, place.needs>>20))
			f.mend = "df -h " + place.dir + " says which disk that is"
			if place.dir == d.cache {
				f.mend += "; BJ_CACHE names another folder"
			}
			if place.dir == os.TempDir() {
				f.mend += "; TMPDIR names another folder"
			}
		}
		line := fmt.Sprintf("%d MiB left in %s, for %s", free>>20, place.dir, place.what)
		if place.dir == d.cache && free < virtualDisk {
			line += fmt.Sprintf("\nimages of virtual machines take about %d MiB: BJ_CACHE names another folder", int64(virtualDisk)>>20)
		}
		lines = append(lines, line)
	}
	if f.err == nil {
		f.text = strings.Join(lines, "\n")
	}
	return f
}

// room returns how many bytes may be written to a folder, or to where it would be
// made.
func room(dir string) (int64, error) {
	var fs unix.Statfs_t
	for err := unix.Statfs(dir, &fs); err != nil; err = unix.Statfs(dir, &fs) {
		up := filepath.Dir(dir)
		if !errors.Is(err, unix.ENOENT) || up == dir {
			return 0, err
		}
		dir = up
	}
	return int64(fs.Bavail) * fs.Bsize, nil
}

// lookForPrograms looks for what makes tools, on PATH.
func (d *doctor) lookForPrograms(ctx context.Context) {
	for _, p := range []struct{ name, use, mend string }{
		{"go", "tool(go = ...) is built with it", "install Go from https://go.dev/dl, or: apt-get install golang-go"},
		{"apt-get", "tool(deb = ...) is fetched with it", "a Debian machine has it"},
		{"dpkg-deb", "tool(deb = ...) is unpacked with it", "apt-get install dpkg"},
		{"mmdebstrap", "image(debian = ...) is made with it, and what virtual machines run on", "apt-get install mmdebstrap"},
		{"git", "bj test --changed-since asks it", "apt-get install git"},
	} {
		f := finding{name: p.name, text: p.use}
		if path, err := exec.LookPath(p.name); err != nil {
			f.err, f.mend = errors.New("it is not on PATH"), p.mend
		} else {
			f.text = path + ": " + p.use
		}
		d.print(ctx, f)
	}
}
