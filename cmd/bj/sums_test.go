package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestDigestNotices changes what goes into a recipe outside of its own file.
func TestDigestNotices(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write("bj.star", "")
	write("go.mod", "module w.invalid\n")
	write("cmd/x/main.go", "package main\n\nimport _ \"w.invalid/inner\"\n\nfunc main() {}\n")
	write("inner/inner.go", "package inner\n")
	write("other/other.go", "package other\n")
	write("bin/tool", "one")
	write("p/a.conf", "one")
	write("lib/m.star", "def words():\n    return \"one\"\n")
	write("p/p.star", `load("//lib:m.star", "words")

h = hardware("m")
service(name = "s", owner = "o")
recipe(
    name = "r",
    service = "s",
    hardware = [h],
    tooling = [
        tool("tool", path = "../bin/tool"),
        tool("x", go = "./cmd/x"),
        file("/etc/a", source = "a.conf"),
        secret("KEY", test = "a key", where = "safe"),
    ],
    strategy = [step("Say", run = "echo " + words())],
    validation = [validate("said", run = "true")],
)
`)
	digest := func() string {
		t.Helper()
		e := newEnv()
		e.dir, e.noCache = root, true
		l, err := loadFleet(t.Context(), e, []string{"//p:r"}, true)
		if err != nil {
			t.Fatal(err)
		}
		return l.digest(l.recipes[0])
	}
	last := digest()
	for _, c := range []struct {
		name, text string
		same       bool
	}{
		{"p/a.conf", "two", false},
		{"p/a.conf", "two", true},
		{"bin/tool", "two", false},
		{"inner/inner.go", "package inner\n\nconst A = 1\n", false},
		{"other/other.go", "package other\n\nconst A = 1\n", true},
		{"cmd/x/main_test.go", "package main\n", true},
		{"cmd/x/data.txt", "embedded", false},
		{"go.mod", "module w.invalid\n\ngo 1.25\n", false},
		{"lib/m.star", "def words():\n    return \"two\"\n", false},
		{"lib/m.star", "# words\ndef words():\n    return \"two\"\n", true},
	} {
		write(c.name, c.text)
		now := digest()
		if (now == last) != c.same {
			t.Errorf("%s: same digest %t", c.name, now == last)
		}
		last = now
	}
}
