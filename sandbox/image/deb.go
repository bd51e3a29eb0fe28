package image

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"bj/sandbox"
)

// deb unpacks a Debian package, with what it depends on and the machine's root
// lacks, into a tree. It does so as any user and changes nothing of the host:
// apt-get works in state folders of the store's own and only reads what is
// installed, and dpkg-deb unpacks. Nothing is configured: maintainer scripts do
// not run, so alternatives, users and generated files are missing.
//
// Without a version, whichever was first unpacked stays (Fresh asks again).
func (s *Store) deb(ctx context.Context, t sandbox.Tool, b base, progress func(string)) ([]sandbox.File, error) {
	a, err := s.apt(t.Deb, progress)
	if err != nil {
		return nil, hint(fmt.Errorf("deb = %q needs apt: %w", t.Deb, err), fmt.Sprintf("run bj on Debian, or give the program with --tool %s=PATH", t.Name))
	}
	key := fmt.Sprintf("deb %s of %s for %s", t.Deb, suite(), runtime.GOARCH)
	if b.root != nil || b.none != nil {
		if a.release, err = b.release(); err != nil {
			return nil, hint(fmt.Errorf("deb = %q: %w", t.Deb, err), "take an image of Debian, or a tool with go, url or path")
		}
		a.root = b.root
		a.dir += "-" + a.release
		key = fmt.Sprintf("deb %s of %s for %s on root %s", t.Deb, a.release, runtime.GOARCH, b.root.Digest)
	}
	m, err := s.cached(ctx, key, progress, func(work string) (made, error) { return a.make(ctx, work) })
	if err != nil {
		return nil, err
	}
	return debFiles(t, m, s.source(m), b.isProgram)
}

// debFiles lays the tree over the root. A program that its package keeps off
// PATH is put there by a script.
func debFiles(t sandbox.Tool, m made, tree string, inRoot func(name string) bool) ([]sandbox.File, error) {
	files := []sandbox.File{{
		Path: "/", Mode: 0o755, Source: tree, Tree: true, ReadOnly: true,
		About: t.Name + ": " + m.About, Digest: m.Digest,
	}}
	onPath, elsewhere, err := programs(tree)
	if err != nil {
		return nil, err
	}
	if slices.Contains(onPath, t.Name) || inRoot(t.Name) {
		return files, nil
	}
	var hits []string
	for _, p := range elsewhere {
		if filepath.Base(p) == t.Name {
			hits = append(hits, p)
		}
	}
	if len(hits) == 1 {
		return append(files, sandbox.File{
			Path: bin + t.Name, Mode: 0o755, ReadOnly: true,
			Content: []byte("#!/bin/sh\nexec " + hits[0] + " \"$@\"\n"),
		}), nil
	}
	has := "no program at all"
	if len(onPath) > 0 {
		has = strings.Join(onPath[:min(len(onPath), 20)], ", ")
		if len(onPath) > 20 {
			has += ", …"
		}
	}
	return nil, hint(fmt.Errorf("the package %s has no program %s", t.Deb, t.Name), "with what it depends on it has: "+has)
}

var pathDirs = []string{"usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin"}

func isProgram(root, name string) bool {
	return slices.ContainsFunc(pathDirs, func(dir string) bool {
		st, err := os.Stat(filepath.Join(root, dir, name))
		return err == nil && !st.IsDir() && st.Mode()&0o111 != 0
	})
}

// programs lists what can be run in a tree: names on PATH, and absolute paths
// of the rest.
func programs(tree string) (onPath, elsewhere []string, err error) {
	err = filepath.WalkDir(tree, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(tree, p)
		// A link's target may lie in the machine's own root: its name counts.
		link := d.Type()&fs.ModeSymlink != 0
		if !link {
			if st, err := d.Info(); err != nil || !st.Mode().IsRegular() || st.Mode()&0o111 == 0 {
				return err
			}
		}
		switch {
		case slices.Contains(pathDirs, filepath.Dir(rel)):
			onPath = append(onPath, filepath.Base(rel))
		case !link:
			elsewhere = append(elsewhere, "/"+rel)
		}
		return nil
	})
	slices.Sort(onPath)
	return slices.Compact(onPath), elsewhere, err
}

// apt is one package being fetched and unpacked.
type apt struct {
	store       *Store
	dir         string // private state of apt, shared by all packages
	env         []string
	get, unpack string // apt-get, dpkg-deb
	pkg         string // name or name=version
	progress    func(string)
	root        *Root  // the machine's, if that is not the host's
	release     string // of that root
}

// apt returns what fetches a package, if the host has apt.
func (s *Store) apt(pkg string, progress func(string)) (*apt, error) {
	env := s.environ([]string{"APT_CONFIG", "LC_ALL", "LANGUAGE"}, "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive")
	a := &apt{store: s, dir: filepath.Join(s.Dir, "apt"), env: env, pkg: pkg, progress: progress}
	var errGet, errUnpack error
	a.get, errGet = lookPath(env, "apt-get")
	a.unpack, errUnpack = lookPath(env, "dpkg-deb")
	return a, errors.Join(errGet, errUnpack)
}

func (a *apt) make(ctx context.Context, work string) (made, error) {
	start := time.Now()
	debs, err := a.download(ctx, work)
	if err != nil {
		return made{}, err
	}
	var sums, names []string
	tree := filepath.Join(work, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		return made{}, err
	}
	for _, deb := range debs {
		sum, err := fileDigest(deb)
		if err != nil {
			return made{}, err
		}
		sums = append(sums, sum)
		// Each on its own first: a package may write through another's link.
		part := filepath.Join(work, "part")
		if _, err := (command{Dir: work, Env: a.env, Argv: []string{a.unpack, "-x", deb, part}}).run(ctx); err != nil {
			return made{}, err
		}
		if err := overlay(part, tree); err != nil {
			return made{}, fmt.Errorf("unpacking %s: %w", filepath.Base(deb), err)
		}
		if err := removeAll(part); err != nil {
			return made{}, err
		}
		name, err := command{Dir: work, Env: a.env, Argv: []string{a.unpack, "-f", deb, "Package", "Version"}}.run(ctx)
		if err != nil {
			return made{}, err
		}
		names = append(names, debName(name))
	}
	digest := textDigest("debs, merged usr\n" + strings.Join(sums, "\n"))
	if err := moveTo(tree, filepath.Join(a.store.Dir, "trees", digest)); err != nil && !errors.Is(err, fs.ErrExist) {
		return made{}, err
	}
	a.progress(fmt.Sprintf("unpacked %s in %s, %s", a.pkg, seconds(time.Since(start)), count(len(debs), "package")))
	return made{Digest: digest, Tree: true, About: a.about(names)}, nil
}

// about says what was unpacked, for people: the package, and a word on the rest.
func (a *apt) about(names []string) string {
	pkg, _, _ := strings.Cut(a.pkg, "=")
	i := slices.IndexFunc(names, func(n string) bool { return strings.HasPrefix(n, pkg+"=") })
	switch {
	case i < 0: // a virtual package
		return fmt.Sprintf("Debian's %s, as %s", pkg, strings.Join(names, ", "))
	case len(names) == 1:
		return "Debian's " + names[i]
	}
	return fmt.Sprintf("Debian's %s with %s that it needs", names[i], count(len(names)-1, "package"))
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// debName makes "jq=1.6-2.1" of dpkg-deb's fields.
func debName(fields string) string {
	var name, version string
	for line := range strings.Lines(fields) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch k {
		case "Package":
			name = v
		case "Version":
			version = v
		}
	}
	return name + "=" + version
}

// download returns the files of the package and of all that the host lacks for
// it, sorted by name. Package lists are fetched when there are none, and once
// more if they turn out to be too old.
func (a *apt) download(ctx context.Context, work string) ([]string, error) {
	// The lists are shared, and apt's own locks need root's folders.
	l, err := a.store.lock(ctx, "apt", nil)
	if err != nil {
		return nil, err
	}
	defer l.unlock()
	archives := filepath.Join(work, "archives")
	updated, err := a.prepare(ctx, work)
	if err != nil {
		return nil, err
	}
	a.progress("fetching the Debian package " + a.pkg)
	install := command{Dir: work, Env: a.env, Argv: []string{a.get, "install", "--download-only", "--yes", "--quiet", "--no-install-recommends",
		"--reinstall", "--allow-downgrades", "--allow-remove-essential", "--allow-change-held-packages", a.pkg}}
	_, err = install.run(ctx)
	if err != nil && !updated && ctx.Err() == nil {
		if err := a.update(ctx, work); err != nil {
			return nil, err
		}
		_, err = install.run(ctx)
	}
	if err != nil {
		return nil, hint(err, "apt-cache policy "+strings.SplitN(a.pkg, "=", 2)[0]+" says which versions there are")
	}
	debs, err := filepath.Glob(filepath.Join(archives, "*.deb"))
	if err != nil {
		return nil, err
	}
	// Packages of a repository that is a folder are not copied, only named.
	install.Argv = slices.Insert(install.Argv, 2, "--print-uris")
	uris, err := install.run(ctx)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(uris) {
		if rest, ok := strings.CutPrefix(line, "'file:"); ok {
			path, _, _ := strings.Cut(rest, "'")
			if path, err = url.PathUnescape(path); err != nil {
				return nil, fmt.Errorf("reading what apt-get names: %w", err)
			}
			debs = append(debs, path)
		}
	}
	if len(debs) == 0 {
		return nil, fmt.Errorf("apt-get has fetched nothing for %s", a.pkg)
	}
	slices.SortFunc(debs, func(x, y string) int { return strings.Compare(filepath.Base(x), filepath.Base(y)) })
	return debs, nil
}

// prepare writes apt's configuration and fetches package lists if there are none,
// which it reports. The caller has apt's lock.
func (a *apt) prepare(ctx context.Context, work string) (updated bool, err error) {
	archives := filepath.Join(work, "archives")
	for _, dir := range []string{filepath.Join(a.dir, "lists", "partial"), filepath.Join(archives, "partial")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return false, err
		}
	}
	if err := a.configure(ctx, work, archives); err != nil {
		return false, err
	}
	if packages, _ := filepath.Glob(filepath.Join(a.dir, "lists", "*Packages*")); len(packages) > 0 && !a.store.Fresh {
		return false, nil
	}
	return true, a.update(ctx, work)
}

func (a *apt) update(ctx context.Context, work string) error {
	a.progress("fetching Debian's package lists")
	_, err := command{Dir: work, Env: a.env, Argv: []string{a.get, "update", "--quiet", "--error-on=any"}}.run(ctx)
	if err != nil {
		return hint(err, "the first use of a package needs its repository; what is cached needs none")
	}
	return nil
}

// configure writes the configuration that apt-get is to use: how the host
// reaches its repositories (proxies, certificates, release), but none of its
// hooks, and no folder of the host to write to.
func (a *apt) configure(ctx context.Context, work, archives string) error {
	dump := ""
	if cmd, err := lookPath(a.env, "apt-config"); err == nil {
		if dump, err = (command{Dir: work, Env: a.env, Argv: []string{cmd, "dump"}}).run(ctx); err != nil {
			return err
		}
	}
	var b strings.Builder
	for line := range strings.Lines(dump) {
		if strings.HasPrefix(line, "Acquire") || strings.HasPrefix(line, "APT::Default-Release") || strings.HasPrefix(line, "APT::Architecture") {
			b.WriteString(line)
		}
	}
	status := "/var/lib/dpkg/status"
	var own [][2]string
	if a.root != nil {
		b, err := readFromTar(a.root.tar, "var/lib/dpkg/status")
		if err != nil {
			return fmt.Errorf("reading what is installed in %s: %w", a.root.About, err)
		}
		status = filepath.Join(work, "status")
		if err := os.WriteFile(status, b, 0o644); err != nil {
			return err
		}
		sources, err := a.sources(ctx, work)
		if err != nil {
			return err
		}
		list := filepath.Join(work, "sources.list")
		if err := os.WriteFile(list, []byte(strings.Join(sources, "\n")+"\n"), 0o644); err != nil {
			return err
		}
		own = [][2]string{{"Dir::Etc::sourcelist", list}, {"Dir::Etc::sourceparts", "/dev/null"}, {"Dir::Etc::preferencesparts", "/dev/null"}, {"APT::Default-Release", ""}}
	}
	state := func(name string) string { return filepath.Join(a.dir, name) }
	for _, kv := range slices.Concat(own, [][2]string{
		{"Dir::Etc::main", "/dev/null"},
		{"Dir::Etc::parts", "/dev/null"},
		{"Dir::State", a.dir},
		{"Dir::State::lists", state("lists") + "/"},
		{"Dir::State::extended_states", state("extended_states")},
		{"Dir::State::status", status},
		{"Dir::Cache", a.dir},
		{"Dir::Cache::archives", archives + "/"},
		{"Dir::Cache::pkgcache", ""},
		{"Dir::Cache::srcpkgcache", ""},
		{"Dir::Log", a.dir},
		{"Debug::NoLocking", "true"},
		{"APT::Sandbox::User", ""},
		{"APT::Keep-Downloaded-Packages", "true"},
		{"Acquire::Retries", "2"},
		{"Acquire::http::Timeout", "30"},
		{"Acquire::https::Timeout", "30"},
	}) {
		fmt.Fprintf(&b, "%s %q;\n", kv[0], kv[1])
	}
	for _, line := range a.store.AptOptions {
		b.WriteString(line + "\n")
	}
	conf := filepath.Join(work, "apt.conf")
	a.env = append(a.env, "APT_CONFIG="+conf)
	return os.WriteFile(conf, []byte(b.String()), 0o644)
}

// sources are those of the root's release: the host's, if it has them, or else
// those that the root itself was made from.
func (a *apt) sources(ctx context.Context, work string) ([]string, error) {
	sources, _, err := aptSources(ctx, work, a.env, a.release)
	if err != nil || len(sources) > 0 {
		return sources, err
	}
	signed := ""
	if readable(debianKeys) {
		signed = "[signed-by=" + debianKeys + "] "
	}
	list, err := readFromTar(a.root.tar, "etc/apt/sources.list")
	if err != nil {
		return nil, hint(fmt.Errorf("looking for packages of Debian %s: neither this host nor %s says where they are: %w", a.release, a.root.About, err), "name a source of "+a.release+" in /etc/apt/sources.list.d")
	}
	for line := range strings.Lines(string(list)) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "deb "); ok {
			if !strings.HasPrefix(rest, "[") {
				rest = signed + rest
			}
			sources = append(sources, "deb "+rest)
		}
	}
	if len(sources) == 0 {
		return nil, hint(fmt.Errorf("looking for packages of Debian %s: neither this host nor %s says where they are", a.release, a.root.About), "name a source of "+a.release+" in /etc/apt/sources.list.d")
	}
	return sources, nil
}

// overlay moves everything in from to the tree to, where files that are there
// already give way. Folders that the root has merged into /usr are merged: a
// real /bin would hide the machine's.
func overlay(from, to string) error {
	return filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(from, p)
		dst := filepath.Join(to, merged(rel))
		if d.IsDir() {
			return os.MkdirAll(dst, 0o755)
		}
		if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
			return err
		}
		return os.Rename(p, dst)
	})
}

// merged returns where a relative path of a package lies on a root with a
// merged /usr.
func merged(rel string) string {
	top, rest, _ := strings.Cut(rel, "/")
	switch top {
	case "bin", "sbin", "lib", "lib32", "lib64", "libx32":
		return filepath.Join("usr", top, rest)
	}
	return rel
}

// suite is the host's release, such as bookworm.
func suite() string {
	f, err := os.Open("/etc/os-release")
	if err != nil {
		return "unknown"
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if v, ok := strings.CutPrefix(sc.Text(), "VERSION_CODENAME="); ok {
			return strings.Trim(v, `"`)
		}
	}
	return "unknown"
}
