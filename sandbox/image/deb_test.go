package image

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"bj/sandbox"
)

// debRepo is a repository of packages in a folder.
type debRepo struct {
	dir     string
	options []string // for apt
}

func newDebRepo(t *testing.T) *debRepo {
	t.Helper()
	for _, p := range []string{"apt-get", "dpkg-deb"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("there is no %s here", p)
		}
	}
	r := &debRepo{dir: t.TempDir()}
	list := write(t, r.dir+"/sources.list", "deb [trusted=yes] file:"+r.dir+" ./\n", 0o644)
	r.options = []string{`Dir::Etc::sourcelist "` + list + `";`, `Dir::Etc::sourceparts "/dev/null";`}
	return r
}

// add builds a package of files and publishes it.
func (r *debRepo) add(t *testing.T, name, version, depends string, files map[string]string) {
	t.Helper()
	root := t.TempDir()
	arch := map[string]string{"amd64": "amd64", "arm64": "arm64"}[runtime.GOARCH]
	control := fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: %s\nMaintainer: nobody <nobody@example.test>\nDescription: a test\n", name, version, arch)
	if depends != "" {
		control += "Depends: " + depends + "\n"
	}
	for path, text := range files {
		if target, ok := strings.CutPrefix(text, "-> "); ok {
			os.MkdirAll(filepath.Dir(root+path), 0o755)
			if err := os.Symlink(target, root+path); err != nil {
				t.Fatal(err)
			}
			continue
		}
		mode := os.FileMode(0o644)
		if strings.HasPrefix(text, "#!") {
			mode = 0o755
		}
		write(t, root+path, text, mode)
	}
	write(t, root+"/DEBIAN/control", control, 0o644)
	deb := fmt.Sprintf("%s_%s_%s.deb", name, version, arch)
	output(t, "dpkg-deb", "--build", "--root-owner-group", root, filepath.Join(r.dir, deb))
	digest, err := fileDigest(filepath.Join(r.dir, deb))
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(filepath.Join(r.dir, deb))
	if err != nil {
		t.Fatal(err)
	}
	old, _ := os.ReadFile(r.dir + "/Packages")
	write(t, r.dir+"/Packages", fmt.Sprintf("%s%sFilename: ./%s\nSize: %d\nSHA256: %s\n\n", old, control, deb, st.Size(), digest), 0o644)
}

func TestDeb(t *testing.T) {
	r := newDebRepo(t)
	r.add(t, "bj-lib", "2.0", "", map[string]string{"/usr/share/bj-lib/data": "data"})
	r.add(t, "bj-prog", "1.0-1", "bj-lib (>= 1.0), libc6", map[string]string{
		"/bin/bj-prog":               "#!/bin/sh\necho prog\n",
		"/sbin/bj-link":              "-> /usr/bin/bj-prog",
		"/lib/bj-prog/part":          "part",
		"/usr/share/bj-prog/ctl.sh":  "#!/bin/sh\necho ctl\n",
		"/usr/share/bj-prog/README":  "read me",
		"/etc/bj-prog/settings.conf": "x = 1\n",
	})
	before, err := os.ReadFile("/var/lib/dpkg/status")
	if err != nil {
		t.Skip("this host has no packages")
	}
	dir := t.TempDir()
	s := &Store{Dir: dir, AptOptions: r.options}
	files, said := stage(t, s, sandbox.Tool{Name: "bj-prog", Deb: "bj-prog"})
	f := files[0]
	if len(files) != 1 || f.Path != "/" || !f.Tree || f.About != "bj-prog: Debian's bj-prog=1.0-1 with 1 package that it needs" {
		t.Errorf("the package became %+v", files)
	}
	if !strings.Contains(said, "unpacked bj-prog in ") || !strings.Contains(said, "2 packages") {
		t.Errorf("progress says:\n%s", said)
	}
	if got := output(t, f.Source+"/usr/bin/bj-prog"); got != "prog\n" {
		t.Errorf("the program says %q", got)
	}
	for _, path := range []string{"/usr/share/bj-lib/data", "/usr/lib/bj-prog/part", "/etc/bj-prog/settings.conf", "/usr/sbin/bj-link"} {
		if _, err := os.Lstat(f.Source + path); err != nil {
			t.Error(err)
		}
	}
	for _, path := range []string{"/bin", "/sbin", "/lib"} { // would hide the machine's
		if _, err := os.Lstat(f.Source + path); err == nil {
			t.Errorf("the tree has a %s of its own", path)
		}
	}
	if after, err := os.ReadFile("/var/lib/dpkg/status"); err != nil || string(after) != string(before) {
		t.Errorf("what is installed on the host has changed (%v)", err)
	}

	// A program that is not on PATH is put there.
	files, _ = stage(t, s, sandbox.Tool{Name: "ctl.sh", Deb: "bj-prog"})
	if len(files) != 2 || files[1].Path != "/usr/local/bin/ctl.sh" || string(files[1].Content) != "#!/bin/sh\nexec /usr/share/bj-prog/ctl.sh \"$@\"\n" {
		t.Errorf("a program off PATH became %+v", files)
	}
	refused(t, s, sandbox.Tool{Name: "other", Deb: "bj-prog"}, "has no program other", "bj-link, bj-prog")
	refused(t, s, sandbox.Tool{Name: "bj-prog", Deb: "bj-none"}, "Unable to locate package bj-none", "apt-cache policy bj-none")
	refused(t, s, sandbox.Tool{Name: "bj-prog", Deb: "bj-prog=9"}, "9")

	// With the repository gone, what is cached stays.
	if err := os.RemoveAll(r.dir); err != nil {
		t.Fatal(err)
	}
	if _, said := stage(t, &Store{Dir: dir, AptOptions: r.options}, sandbox.Tool{Name: "bj-prog", Deb: "bj-prog"}); said != "" {
		t.Errorf("the second run says %q", said)
	}
	refused(t, &Store{Dir: t.TempDir(), Env: []string{"PATH=/nonexistent"}}, sandbox.Tool{Name: "bj-prog", Deb: "bj-prog"}, "needs apt", "--tool bj-prog=PATH")
}

// Lists that were fetched before a package was published do not hide it.
func TestDebListsAreFetchedAgain(t *testing.T) {
	r := newDebRepo(t)
	r.add(t, "bj-old", "1", "", map[string]string{"/usr/bin/bj-old": "#!/bin/sh\n"})
	s := &Store{Dir: t.TempDir(), AptOptions: r.options}
	stage(t, s, sandbox.Tool{Name: "bj-old", Deb: "bj-old"})
	r.add(t, "bj-new", "3:1.5~rc1", "", map[string]string{"/usr/bin/bj-new": "#!/bin/sh\n"})
	files, said := stage(t, s, sandbox.Tool{Name: "bj-new", Deb: "bj-new=3:1.5~rc1"})
	if !strings.Contains(said, "package lists") || !strings.Contains(files[0].About, "bj-new=3:1.5~rc1") {
		t.Errorf("a new package became %+v, saying %q", files, said)
	}
}
