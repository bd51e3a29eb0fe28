package main

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	ocilayout "github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"bj/fleet"
	"bj/sandbox/image"
)

// imageRecipes is a workspace whose machines run on images.
const imageRecipes = `
service(name = "s", owner = "x")

def trial(name, image, script):
    m = hardware("m", image = image)
    recipe(name = name, service = "s", hardware = [m],
        strategy = [step("look", run = script), step("write", run = "echo back > /root/done")],
        validation = [validate("done", run = "read x < /root/done && test $x = back")])

oci = image("tiny", oci = "layout")
trial("oci", oci, """
    read x < /greeting; test "$x" = "from the image"
    test -c /dev/null; test -d /sys/class; echo x > /tmp/x; test ! -e /x
    test ! -e /gone; test ! -e /usr/share; test -x /bin/cat
    read h < /etc/hostname; test "$h" = m
    read id < /etc/machine-id; test ${#id} = 32
    echo more > /opt/own; echo changed > /greeting2
    case "$(cat /etc/hosts)" in *198.18.0.10*) ;; *) exit 1; esac
""")
trial("fresh", oci, "test ! -e /opt/own; test ! -e /greeting2")
trial("debian", image("packages", debian = ["jq"]), """
    jq --version; test ! -e /usr/bin/go; hostname | grep -qx m
    test $(stat -c %a%U%G /etc/shadow) = 640rootshadow
    su nobody -s /bin/sh -c 'test $(id -un) = nobody'
    dpkg -s jq > /dev/null; test -s /etc/machine-id; rm /usr/bin/jq
""")
trial("two", image("two", oci = "several"), "true")
trial("bad", image("bad", oci = "damaged"), "true")
trial("bare", image("bare", oci = "bare"), "true")
`

// TestImages holds that recipes run on the images that they name, as root and as
// an ordinary user, and that the verdict says on which.
func TestImages(t *testing.T) {
	workspace := openDir(t)
	write := func(name, text string) {
		path := filepath.Join(workspace, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("bj.star", `workspace(name = "images")`)
	write("r/a.star", imageRecipes)
	tiny := ociImage(t, map[string]string{"greeting": "from the image\n", "gone": "x", "opt/.keep": "",
		// None of these leads to this machine.
		"dev": "-> /", "sys": "-> /tmp", "tmp": "-> /", "home": "-> /tmp/bj-verdicts-host", "srv": "-> ../../../tmp", "var": "-> /var/tmp"}, map[string]string{".wh.gone": ""})
	bare := ociImage(t, map[string]string{"bin/true": "x"}, nil)
	ociLayout(t, filepath.Join(workspace, "r/layout"), tiny)
	ociLayout(t, filepath.Join(workspace, "r/several"), tiny, bare)
	ociLayout(t, filepath.Join(workspace, "r/bare"), bare)
	ociLayout(t, filepath.Join(workspace, "r/damaged"), ociImage(t, map[string]string{"other": "x"}, nil))
	damage(t, filepath.Join(workspace, "r/damaged"))
	modes(t, func(t *testing.T, asRoot bool) {
		l := newLab(t)
		dir := l.folder(t, asRoot)
		patterns := []string{"//r:oci", "//r:fresh"}
		if asRoot {
			// Debian's packages come from its repository, which the lab cannot reach.
			store := &image.Store{Dir: filepath.Join(dir, "cache", "tools")}
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			if _, err := store.Root(ctx, &fleet.Image{Name: "packages", Debian: []string{"jq"}}, nil); err != nil {
				t.Logf("without image(debian = ...), whose packages cannot be had here: %v", err)
			} else {
				patterns = append(patterns, "//r:debian")
			}
		}
		test := func(patterns ...string) (string, int) {
			cmd := l.bj(t.Context(), t, asRoot, dir, append([]string{"test", "--jobs", "1", "--results", filepath.Join(dir, "results")}, patterns...)...)
			cmd.Dir = workspace
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := l.start(cmd); err != nil {
				t.Fatal(err)
			}
			cmd.Wait()
			return out.String(), cmd.ProcessState.ExitCode()
		}
		out, code := test(patterns...)
		if code != exitOK {
			t.Errorf("%q: exit code %d\n%s", patterns, code, out)
		}
		if !strings.Contains(out, "proven on OCI image layout@sha256:") {
			t.Errorf("the verdict does not name the OCI image:\n%s", out)
		}
		if len(patterns) == 3 && !regexp.MustCompile(`proven on Debian [0-9.]+ with jq \([0-9]+ packages\), sha256:[0-9a-f]{12}\n`).MatchString(out) {
			t.Errorf("the verdict does not name the packages:\n%s", out)
		}
		for label, says := range map[string]string{
			"//r:two":  "it has 2: sha256:",
			"//r:bad":  "checking the OCI layout",
			"//r:bare": "it has no /bin/sh",
		} {
			if out, code := test(label); code != exitError || !strings.Contains(out, says) || !strings.Contains(out, "hint: ") {
				t.Errorf("%s: exit code %d, want %d and %q:\n%s", label, code, exitError, says, out)
			}
		}
	})
}

// ociImage is an image of two layers; unless it has a /bin/true of its own, the
// first holds a shell of this machine.
func ociImage(t *testing.T, first, second map[string]string) v1.Image {
	t.Helper()
	if _, ok := first["bin/true"]; !ok {
		for _, program := range []string{"/bin/sh", "/bin/cat"} {
			first[strings.TrimPrefix(program, "/")] = readAll(t, program)
			out, err := exec.Command("ldd", program).Output()
			if err != nil {
				t.Fatalf("reading what %s is linked with: %v", program, err)
			}
			for _, lib := range regexp.MustCompile(`/\S+`).FindAllString(string(out), -1) {
				first[strings.TrimPrefix(lib, "/")] = readAll(t, lib)
			}
		}
		first["etc/passwd"] = "root:x:0:0:root:/root:/bin/sh\n"
	}
	img := empty.Image
	for _, files := range []map[string]string{first, second} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for name, text := range files {
			h := &tar.Header{Name: name, Mode: 0o755, Size: int64(len(text)), Typeflag: tar.TypeReg}
			link, isLink := strings.CutPrefix(text, "-> ")
			if isLink {
				h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, link, 0
			}
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			if !isLink {
				w.Write([]byte(text))
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			t.Fatal(err)
		}
	}
	return img
}

func readAll(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func ociLayout(t *testing.T, dir string, images ...v1.Image) {
	t.Helper()
	p, err := ocilayout.Write(dir, empty.Index)
	for _, img := range images {
		if err == nil {
			err = p.AppendImage(img)
		}
	}
	if err == nil {
		err = exec.Command("chmod", "-R", "a+rX", dir).Run()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// damage changes a byte of the largest blob of a layout.
func damage(t *testing.T, dir string) {
	t.Helper()
	blobs, err := filepath.Glob(filepath.Join(dir, "blobs", "sha256", "*"))
	if err != nil || len(blobs) == 0 {
		t.Fatal("there are no blobs", err)
	}
	largest, size := "", int64(0)
	for _, b := range blobs {
		if st, err := os.Stat(b); err == nil && st.Size() > size {
			largest, size = b, st.Size()
		}
	}
	b := []byte(readAll(t, largest))
	b[len(b)/2] ^= 1
	if err := os.WriteFile(largest, b, 0o644); err != nil {
		t.Fatal(err)
	}
}
