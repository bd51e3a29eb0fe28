package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"bj/sandbox"
)

// debianRoot makes a root file system of Debian packages with mmdebstrap. Apt
// checks the signatures, with the keys that the host trusts, and refuses what
// has none. Packages without a version stay as they were first made (Fresh asks
// again).
func (s *Store) debianRoot(ctx context.Context, i *sandbox.Image, progress func(string)) (made, error) {
	release := i.Suite
	if release == "" {
		release = Standard().Suite
	}
	packages := slices.Clone(i.Debian)
	if i.Systemd {
		packages = append(packages, "systemd", "systemd-sysv", "dbus", "udev")
	}
	slices.Sort(packages)
	packages = slices.Compact(packages)
	key := fmt.Sprintf("root 1 of Debian %s for %s with %s", release, runtime.GOARCH, strings.Join(packages, " "))
	return s.cached(ctx, key, progress, func(work string) (made, error) {
		env := s.environ([]string{"APT_CONFIG", "LC_ALL", "LANGUAGE", "TMPDIR"},
			"LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", "SOURCE_DATE_EPOCH=1", "TMPDIR="+work)
		program, err := lookPath(env, "mmdebstrap")
		if err != nil {
			return made{}, hint(fmt.Errorf("an image of Debian packages: %w", err), "apt-get install mmdebstrap")
		}
		if err := roomForImage(work); err != nil {
			return made{}, err
		}
		start := time.Now()
		progress(fmt.Sprintf("making a root of Debian %s with %s", release, count(len(packages), "package")))
		out := filepath.Join(work, "root.tar")
		argv := []string{program, "--quiet", "--variant=minbase", "--format=tar",
			"--include=" + strings.Join(packages, ","),
			`--aptopt=APT::Get::AllowUnauthenticated "false"`,
			`--aptopt=Acquire::AllowInsecureRepositories "false"`,
			`--aptopt=Acquire::Retries "2"`,
			`--aptopt=Acquire::http::Timeout "30"`,
			`--aptopt=Acquire::https::Timeout "30"`,
			// What tells one machine from another is made anew on each.
			`--customize-hook=rm -f "$1"/etc/ssh/ssh_host_* "$1"/var/lib/dbus/machine-id "$1"/var/lib/systemd/random-seed "$1"/etc/hostname "$1"/etc/resolv.conf`,
			`--customize-hook=: > "$1"/etc/machine-id`,
			`--customize-hook=printf '127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n' > "$1"/etc/hosts`,
		}
		sources, options, err := aptSources(ctx, work, env, release)
		if err != nil {
			return made{}, err
		}
		for _, o := range slices.Concat(options, s.AptOptions) {
			argv = append(argv, "--aptopt="+strings.TrimSuffix(o, ";"))
		}
		argv = append(argv, release, out)
		argv = append(argv, sources...)
		if _, err := (command{Dir: work, Env: env, Argv: argv, Mounts: true}).run(ctx); err != nil {
			if os.Geteuid() != 0 && strings.Contains(err.Error(), "chroot mode") {
				return made{}, hint(err, "an ordinary user needs subordinate ids to make a root: apt-get install uidmap, and usermod --add-subuids and --add-subgids")
			}
			return made{}, hint(err, "are the packages in Debian "+release+"? the first making needs its repository; what is cached needs none")
		}
		names, err := installed(out)
		if err != nil {
			return made{}, err
		}
		about := fmt.Sprintf("Debian %s", release)
		if version := debianVersion(out); version != "" {
			about = version
		}
		about += fmt.Sprintf(" with %s (%s)", strings.Join(i.Debian, ", "), count(names, "package"))
		m, err := s.keepData(out, about)
		if err == nil {
			progress(fmt.Sprintf("made a root of Debian %s in %s, %s", release, seconds(time.Since(start)), megabytes(m.Size)))
		}
		return m, err
	})
}

// debianKeys are those that Debian signs its archive with.
const debianKeys = "/usr/share/keyrings/debian-archive-keyring.gpg"

// aptSources returns the host's own sources for a release, where it has them (a
// mirror nearby, perhaps), and how it reaches repositories; none means Debian's
// own.
func aptSources(ctx context.Context, work string, env []string, release string) (sources, options []string, err error) {
	if config, err := lookPath(env, "apt-config"); err == nil {
		dump, err := command{Dir: work, Env: env, Argv: []string{config, "dump"}}.run(ctx)
		if err != nil {
			return nil, nil, err
		}
		for line := range strings.Lines(dump) {
			line = strings.TrimSpace(line)
			key, value, _ := strings.Cut(line, " ")
			if strings.HasPrefix(key, "Acquire::http") && strings.Trim(value, `";`) != "" {
				options = append(options, line)
			}
		}
	}
	get, err := lookPath(env, "apt-get")
	if err != nil {
		return nil, options, nil
	}
	targets, err := command{Dir: work, Env: env, Argv: []string{get, "indextargets", "--format", "$(IDENTIFIER)|$(SIGNED_BY)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)"}}.run(ctx)
	if err != nil {
		return nil, nil, err
	}
	base := false
	for line := range strings.Lines(targets) {
		f := strings.Split(strings.TrimSpace(line), "|")
		if len(f) != 5 || f[0] != "Packages" || f[4] == "" {
			continue
		}
		switch f[3] {
		case release:
			base = true
		case release + "-updates", release + "-security":
		default:
			continue
		}
		key := f[1]
		if !path.IsAbs(key) { // an apt before 2.9 does not tell
			key = debianKeys
		}
		signed := ""
		if readable(key) {
			signed = "[signed-by=" + key + "] "
		}
		if line := fmt.Sprintf("deb %s%s %s %s", signed, f[2], f[3], f[4]); !slices.Contains(sources, line) {
			sources = append(sources, line)
		}
	}
	if !base {
		return nil, options, nil
	}
	return sources, options, nil
}

// installed counts the packages of a root.
func installed(tarFile string) (int, error) {
	status, err := readFromTar(tarFile, "var/lib/dpkg/status")
	if err != nil {
		return 0, fmt.Errorf("reading what was installed: %w", err)
	}
	n := strings.Count("\n"+string(status), "\nPackage: ")
	if n == 0 {
		return 0, errors.New("reading what was installed: there is nothing")
	}
	return n, nil
}

// debianVersion says which Debian a root is, to the point release.
func debianVersion(tarFile string) string {
	b, err := readFromTar(tarFile, "etc/debian_version")
	if err != nil {
		return ""
	}
	return "Debian " + strings.TrimSpace(string(b))
}
