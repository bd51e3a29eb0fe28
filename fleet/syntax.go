package fleet

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// A SyntaxError is a person's mistake in a size, time, port, name or endpoint:
// what is wrong, and how to mend it.
type SyntaxError struct {
	Message string
	Hint    string
}

func (e *SyntaxError) Error() string { return e.Message }

func wrong(hint, format string, args ...any) error {
	return &SyntaxError{Message: fmt.Sprintf(format, args...), Hint: hint}
}

// quote prints what somebody wrote, cut to a length that fits a message.
func quote(s string) string {
	if r := []rune(s); len(r) > 80 {
		s = string(r[:77]) + "..."
	}
	return strconv.Quote(s)
}

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
)

// ParseSize reads a whole number of KiB, MiB or GiB and returns bytes.
func ParseSize(s string) (int64, error) {
	const hint = `sizes are whole numbers of KiB, MiB or GiB, such as "512MiB"`
	digits := strings.TrimRight(s, "KMGiBkmgb")
	unit := int64(0)
	switch s[len(digits):] {
	case "KiB":
		unit = kib
	case "MiB":
		unit = mib
	case "GiB":
		unit = gib
	}
	n, err := parseDigits(digits)
	if unit == 0 || err != nil || n == 0 {
		return 0, wrong(hint, "malformed size %s", quote(s))
	}
	if n > math.MaxInt64/unit {
		return 0, wrong(hint, "size %s is too large", quote(s))
	}
	return n * unit, nil
}

// FormatSize prints bytes in the largest unit that divides them; ParseSize
// reads it back. It rounds up to whole KiB.
func FormatSize(n int64) string {
	switch {
	case n%gib == 0:
		return fmt.Sprintf("%dGiB", n/gib)
	case n%mib == 0:
		return fmt.Sprintf("%dMiB", n/mib)
	}
	return fmt.Sprintf("%dKiB", (n+kib-1)/kib)
}

// timeUnits are the units of ParseDuration, in the order in which they may
// follow each other.
var timeUnits = [...]struct {
	name string
	size time.Duration
}{{"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}, {"ms", time.Millisecond}}

// ParseDuration reads a time such as 1h30m, 45s or 200ms: whole numbers, each
// with its unit, the larger first.
func ParseDuration(s string) (time.Duration, error) {
	const hint = `times are written like "1h30m", "45s" or "200ms"`
	var total time.Duration
	rest, next := s, 0
	for rest != "" || s == "" {
		i := 0
		for i < len(rest) && '0' <= rest[i] && rest[i] <= '9' {
			i++
		}
		j := i
		for j < len(rest) && 'a' <= rest[j] && rest[j] <= 'z' {
			j++
		}
		n, err := parseDigits(rest[:i])
		if err != nil {
			return 0, wrong(hint, "malformed time %s", quote(s))
		}
		if i == len(rest) {
			return 0, wrong(hint, "time %s has no unit", quote(s))
		}
		unit := next
		for unit < len(timeUnits) && timeUnits[unit].name != rest[i:j] {
			unit++
		}
		if unit == len(timeUnits) {
			return 0, wrong(hint, "malformed time %s", quote(s))
		}
		d := timeUnits[unit].size
		if n > int64((math.MaxInt64-total)/d) {
			return 0, wrong(hint, "time %s is too long", quote(s))
		}
		total += time.Duration(n) * d
		rest, next = rest[j:], unit+1
	}
	return total, nil
}

// FormatDuration prints d in whole milliseconds as ParseDuration reads it.
func FormatDuration(d time.Duration) string {
	var b strings.Builder
	for _, u := range timeUnits {
		if n := d / u.size; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, u.name)
			d -= n * u.size
		}
	}
	if b.Len() == 0 {
		return "0s"
	}
	return b.String()
}

func parseDigits(s string) (int64, error) {
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, strconv.ErrSyntax
		}
	}
	return strconv.ParseInt(s, 10, 64)
}

// ParsePorts reads "2181", "53/udp" or "8000-8010", with tcp where no protocol
// is named.
func ParsePorts(s string) (Ports, error) {
	const hint = `ports are written like 2181, "53/udp" or "8000-8010"`
	ports, protocol, found := strings.Cut(s, "/")
	if !found {
		protocol = "tcp"
	}
	if protocol != "tcp" && protocol != "udp" {
		return Ports{}, wrong(hint, "unknown protocol in port %s", quote(s))
	}
	first, last, err := parsePortRange(ports)
	if err != nil {
		return Ports{}, err
	}
	return Ports{Protocol: protocol, First: first, Last: last}, nil
}

func parsePortRange(s string) (first, last uint16, err error) {
	a, b, isRange := strings.Cut(s, "-")
	if first, err = parsePort(a); err != nil {
		return 0, 0, err
	}
	if !isRange {
		return first, first, nil
	}
	if last, err = parsePort(b); err != nil {
		return 0, 0, err
	}
	if last < first {
		return 0, 0, wrong("write the smaller port first", "port range %s is empty", quote(s))
	}
	return first, last, nil
}

func parsePort(s string) (uint16, error) {
	n, err := parseDigits(s)
	switch {
	case err != nil && s != "" && strings.Trim(s, "0123456789") == "", err == nil && (n < 1 || n > 65535):
		return 0, wrong("ports are 1 to 65535", "port %s is out of range", quote(s))
	case err != nil:
		return 0, wrong(`a port is a number such as 443, or a range such as 8000-8010`, "malformed port %s", quote(s))
	}
	return uint16(n), nil
}

// String prints the ports as ParsePorts reads them.
func (p Ports) String() string {
	if p.Protocol == "udp" {
		return p.span() + "/udp"
	}
	return p.span()
}

func (p Ports) span() string {
	if p.First == p.Last {
		return strconv.Itoa(int(p.First))
	}
	return fmt.Sprintf("%d-%d", p.First, p.Last)
}

var (
	serviceName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+@:/-]*$`)
	plainName   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+-]*$`)
	machineName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)
	envName     = regexp.MustCompile(`^[A-Z_][A-Z0-9_]*$`)
	anyEnvName  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

// CheckServiceName says what is wrong with the name of a service, or nil.
func CheckServiceName(s string) error {
	if !serviceName.MatchString(s) || strings.Contains(s, "://") {
		return wrong(`service names begin with a letter or digit and hold letters, digits and ._+@:/-`, "malformed service name %s", quote(s))
	}
	return nil
}

// CheckName says what is wrong with the name of a recipe, a pathway or a
// unit (what says which), or nil.
func CheckName(what, s string) error {
	if !plainName.MatchString(s) {
		return wrong(what+` names begin with a letter or digit and hold letters, digits and ._+-`, "malformed %s name %s", what, quote(s))
	}
	return nil
}

// CheckMachineName says what is wrong with the name of hardware, or nil.
func CheckMachineName(s string) error {
	if !machineName.MatchString(s) || len(s) > 63 {
		return wrong("machine names are lower-case DNS labels: letters, digits and inner hyphens, at most 63", "malformed machine name %s", quote(s))
	}
	return nil
}

// CheckCaptureName says what is wrong with the name of a capture or secret, or nil.
func CheckCaptureName(what, s string) error {
	switch {
	case !envName.MatchString(s):
		return wrong(`names of captures and secrets are like "TOKEN": upper-case letters, digits and _`, "malformed %s name %s", what, quote(s))
	case s == "PATH" || s == "HOME" || strings.HasPrefix(s, "BJ_"):
		return wrong("PATH, HOME and BJ_* belong to bj", "%s name %s is reserved", what, quote(s))
	}
	return nil
}

// CheckEnvName says what is wrong with the name of an environment variable of
// a step, or nil.
func CheckEnvName(s string) error {
	if !anyEnvName.MatchString(s) {
		return wrong("names of variables hold letters, digits and _", "malformed variable name %s", quote(s))
	}
	return nil
}
