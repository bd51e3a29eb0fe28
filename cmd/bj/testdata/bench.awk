# Prints Go's benchmark lines as a table in which each benchmark stands beside
# its baseline from the same run. Two forms are read:
#
#	BenchmarkLease/ours-2  100  5300000 ns/op      the pair's names are ours and
#	BenchmarkLease/bwrap-2 100  5100000 ns/op      whatever the baseline is
#	BenchmarkLoad-2  1  1.2 ratio  1.3 goal        a ratio that it made itself
#
# Of a pair with MB/s the ratio is that of throughputs, and has to be reached;
# all others have to be kept. Goals are those below, or the metric goal.

BEGIN {
	goal["Lease"] = 2
	goal["Load"] = 1.3
	goal["LoadUnchanged"] = 0.1
	goal["Throughput"] = goal["ThroughputSeal"] = 0.95
	goal["Relay"] = goal["ThroughputRelay"] = 0.5
	goal["Allows"] = goal["Apply"] = 1.5
	goal["SideBySide"] = 1.15
	row("name", "ours", "baseline", "ratio", "goal")
}

/^Benchmark/ {
	name = $1; sub(/^Benchmark/, "", name); sub(/-[0-9]+$/, "", name)
	ns = mbs = ratio = want = made = base = ""
	for (i = 3; i < NF; i += 2) {
		if ($(i + 1) == "ns/op") ns = $i
		else if ($(i + 1) == "MB/s") mbs = $i
		else if ($(i + 1) == "ratio") ratio = $i
		else if ($(i + 1) == "goal") { want = $i; sign = "<=" }
		else if ($(i + 1) == "min-goal") { want = $i; sign = ">=" }
		else if ($(i + 1) ~ /^ours/) made = $i " " unit($(i + 1))
		else if ($(i + 1) ~ /^baseline/) base = $i " " unit($(i + 1))
	}
	if (ratio != "") {
		row(name, made, base, ratio, want == "" ? "" : sign " " want)
		next
	}
	n = split(name, part, "/")
	if (n < 2) next
	group = substr(name, 1, length(name) - length(part[n]) - 1)
	if (part[n] == "ours") { ours[group] = ns; ours_mbs[group] = mbs }
	else { baseline[group] = ns; baseline_mbs[group] = mbs; label[group] = part[n] }
	if (!(group in ours) || !(group in baseline)) next
	want = goal[group]
	if (ours_mbs[group] != "" && baseline_mbs[group] != "")
		row(group, ours_mbs[group] " MB/s", baseline_mbs[group] " MB/s " label[group], ratio_of(ours_mbs[group], baseline_mbs[group]), want == "" ? "" : ">= " want)
	else
		row(group, time(ours[group]), time(baseline[group]) " " label[group], ratio_of(ours[group], baseline[group]), want == "" ? "" : "<= " want)
	next
}

/^(FAIL|---|panic|#)/ || /[Ee]rror:/ { print; failed = 1 }
END { exit failed }

function row(name, ours, baseline, ratio, goal) { printf "%-32s %16s %26s %8s %8s\n", name, ours, baseline, ratio, goal; fflush() }
function unit(u) { return u ~ /-/ ? substr(u, index(u, "-") + 1) : "" }
function ratio_of(a, b) { return b > 0 ? sprintf("%.2f", a / b) : "?" }
function time(ns) { return ns >= 1e9 ? sprintf("%.2f s", ns / 1e9) : ns >= 1e6 ? sprintf("%.2f ms", ns / 1e6) : sprintf("%.2f us", ns / 1e3) }
