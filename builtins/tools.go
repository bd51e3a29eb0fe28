package builtins

import (
	"path"
	"regexp"
	"strconv"
	"strings"
	"unicode"

	"go.starlark.net/starlark"

	"bj/fleet"
	"bj/lang"
)

var (
	debPackage = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]*(:[a-z0-9]+)?(=[A-Za-z0-9.+:~-]+)?$`)
	goModule   = regexp.MustCompile(`^[A-Za-z0-9.-]+\.[A-Za-z]+(/[A-Za-z0-9._~-]+)*@v[0-9][A-Za-z0-9.+-]*$`)
	sha256Hex  = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

func tool(c *call) starlark.Value {
	t := &thing[fleet.Tool]{kind: "tool", at: c.place()}
	v := &t.v
	v.Pos = c.start()
	v.Name = c.required("name")
	if v.Name != "" && (strings.ContainsAny(v.Name, "/\x00 \t\n") || v.Name == "." || v.Name == "..") {
		c.errorf("name", nil, "name", "it is the name of a program on PATH", "malformed tool name %q", v.Name)
	}
	sources := []string{"path", "go", "deb", "url", "target"}
	given := c.one(sources...)
	v.Path = c.hostPath("path")
	if v.Go = c.required("go"); v.Go != "" {
		switch {
		case strings.HasPrefix(v.Go, "./"):
			if path.Clean(v.Go) != v.Go[2:] || strings.HasPrefix(v.Go, "./..") {
				c.errorf("go", nil, "tool", `write the folder plainly: "./cmd/x"`, "malformed Go package %q", v.Go)
			}
		case !goModule.MatchString(v.Go):
			c.errorf("go", nil, "tool", `write "example.org/module/cmd@v1.2.3", or "./cmd/x" for a program of the workspace's module`, "malformed Go package %q", v.Go)
		}
	}
	if v.Deb = c.required("deb"); v.Deb != "" && !debPackage.MatchString(v.Deb) {
		c.errorf("deb", nil, "tool", `packages are written like "zookeeper" or "zookeeper=3.8.0-11"`, "malformed Debian package %q", v.Deb)
	}
	if v.URL = c.required("url"); v.URL != "" {
		if e, err := fleet.ParseEndpoint(strings.SplitN(v.URL, "?", 2)[0]); err != nil || e.Scheme != "https" && e.Scheme != "http" || e.Path == "" {
			c.errorf("url", nil, "tool", `write "https://host/path/to/program"`, "malformed url %q", v.URL)
		}
	}
	v.SHA256 = strings.ToLower(c.str("sha256"))
	switch {
	case v.SHA256 != "" && !sha256Hex.MatchString(v.SHA256):
		c.errorf("sha256", nil, "tool", "it is 64 hexadecimal digits, as sha256sum prints them", "malformed sha256 %q", v.SHA256)
	case v.SHA256 != "" && given != "url" && given != "":
		c.errorf("sha256", nil, "argument", "", "sha256 belongs to url")
	case v.SHA256 == "" && v.URL != "" && !c.has("sha256"):
		c.errorf("url", nil, "missing-argument", "add what sha256sum prints for the file", "tool with url needs the argument sha256")
	}
	if v.Target = c.required("target"); v.Target != "" {
		if strings.HasPrefix(v.Target, "@//") {
			v.Target = v.Target[1:]
		}
		l, err := lang.ParseLabel(v.Target, c.state.module.Package)
		if err != nil {
			c.errorf("target", nil, "label", `write a Bazel label: "//cmd/x:x"`, "%s", err)
		} else {
			v.Target = l.String()
		}
	}
	switch kept := c.args[c.arg("kept")].(type) {
	case nil:
	case starlark.String:
		v.Kept = &fleet.Kept{Text: strings.TrimSpace(string(kept))}
	case *thing[fleet.Condition]:
		cond := kept.v
		c.bad = c.bad || kept.bad
		v.Kept = &fleet.Kept{Allow: &cond}
		if cond.Service == "*" {
			c.errorf("kept", nil, "argument", "name the service that keeps it", `a tool is not kept in allow("*")`)
		}
	default:
		c.wrongType("kept", nil, kept, "words or an allow(...)")
	}
	v.Doc = strings.TrimSpace(c.str("doc"))
	t.bad = c.bad
	return t
}

// A fileThing is a file with the machines that it goes to.
type fileThing struct {
	fleet.File
	on []*machineValue
}

func file(c *call) starlark.Value {
	t := &thing[fileThing]{kind: "file", at: c.place()}
	v := &t.v
	v.Pos = c.start()
	v.Path = c.required("path")
	if v.Path != "" && (!path.IsAbs(v.Path) || path.Clean(v.Path) != v.Path || v.Path == "/" || strings.ContainsFunc(v.Path, func(r rune) bool { return !unicode.IsPrint(r) })) {
		c.errorf("path", nil, "path", `write where it lies on the machine: "/etc/x.conf"`, "malformed path %q: it must be absolute and plain", v.Path)
	}
	hasContent, hasSource := c.has("content"), c.has("source")
	switch {
	case hasContent && hasSource:
		c.errorf("source", nil, "argument", "give one of content or source", "file has both content and source")
	case !hasContent && !hasSource:
		c.errorAt(lang.Arg{Index: -1}, "missing-argument", "", "file needs one of content or source")
	}
	v.Content = c.str("content")
	v.Source = c.hostPath("source")
	v.Mode = 0o644
	if mode := c.str("mode"); mode != "" {
		n, err := strconv.ParseUint(mode, 8, 32)
		if err != nil || n > 0o7777 || len(mode) < 3 {
			c.errorf("mode", nil, "mode", `modes are octal, as chmod takes them: "0755"`, "malformed mode %q", mode)
		}
		v.Mode = uint32(n)
	}
	v.on = c.machines("on")
	v.On = machineNames(v.on)
	t.bad = c.bad
	return t
}

func secret(c *call) starlark.Value {
	t := &thing[fleet.Secret]{kind: "secret", at: c.place()}
	v := &t.v
	v.Pos = c.start()
	v.Name = c.required("name")
	if v.Name != "" {
		if err := fleet.CheckCaptureName("secret", v.Name); err != nil {
			c.syntaxError("name", nil, "name", err)
		}
	}
	v.Value = c.required("test")
	if strings.HasPrefix(v.Value, ":") || strings.HasPrefix(v.Value, "./") {
		source, err := c.resolvePath(v.Value)
		if err != nil {
			c.errorf("test", nil, "path", "", "%s", err)
		}
		v.Source, v.Value = source, ""
	}
	if strings.ContainsRune(v.Value, 0) {
		c.errorf("test", nil, "script", "", "test of secret contains a NUL byte")
	}
	v.Where = strings.TrimSpace(c.required("where"))
	t.bad = c.bad
	return t
}
