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
	defer os.Remove(probe.Name())
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

// What bj test needs on disk: a little for any recipe, more for the images of
// virtual machines, in bytes.
const (
	leastDisk   = 64 << 20
	virtualDisk = 2 << 30
)

// lookAtDisk says how much room there is where bj writes.
func (d *doctor) lookAtDisk() finding {
	f := finding{name: "disk", vital: true}
	cache := d.cache
	var lines []string
	for _, place := range []struct{ what, dir string }{{"cache", cache}, {"temporary files", os.TempDir()}, {"leases", "/run"}} {
		var fs unix.Statfs_t
		if err := unix.Statfs(place.dir, &fs); err != nil {
			f.err = fmt.Errorf("asking how much room there is in %s: %w", place.dir, err)
			return f
		}
		free := int64(fs.Bavail) * fs.Bsize
		if free < leastDisk && f.err == nil {
			f.err = fmt.Errorf("%s has %d MiB left, and %d are needed", place.dir, free>>20, leastDisk>>20)
			f.mend = "df -h " + place.dir + " says which disk that is"
			if place.dir == cache {
				f.mend += "; BJ_CACHE names another folder"
			}
		}
		line := fmt.Sprintf("%d MiB left in %s, for %s", free>>20, place.dir, place.what)
		if place.dir == cache && free < virtualDisk {
			line += fmt.Sprintf("\nimages of virtual machines take about %d MiB: BJ_CACHE names another folder", int64(virtualDisk)>>20)
		}
		lines = append(lines, line)
	}
	f.text = strings.Join(lines, "\n")
	return f
}

// lookForPrograms looks for what makes tools, on PATH.
func (d *doctor) lookForPrograms(ctx context.Context) {
	for _, p := range []struct{ name, use, mend string }{
		{"go", "tool(go = ...) is built with it", "install Go from https://go.dev/dl, or: apt-get install golang-go"},
		{"apt-get", "tool(deb = ...) is fetched with it", "a Debian machine has it"},
		{"dpkg-deb", "tool(deb = ...) is unpacked with it", "apt-get install dpkg"},
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
