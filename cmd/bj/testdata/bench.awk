# Prints Go's benchmark lines as a table in which each benchmark stands beside
# its baseline from the same run. These forms are read:
#
#	BenchmarkLease/ours, BenchmarkLease/bwrap          ours, and any baseline
#	BenchmarkLoad10k/baseline, BenchmarkLoad10k/cold   a baseline, and any ours
#	BenchmarkRelay-2 3 9000000 ns/op 0.61 x-direct     a ratio to what it names
#	BenchmarkRuns/blame 3 7 runs/op 0.2 x-ddmin        the same, of runs
#
# The ratio is that of times, and has to be kept; that of throughputs, where the
# goal says so, has to be reached. Ratios hold on noisy machines, times do not.

BEGIN {
	goal["Lease"] = "<= 2"
	goal["Load10k/full"] = goal["Load10k/cold"] = "<= 1.3"
	goal["Load10k/unchanged"] = "<= 0.1"
	goal["Throughput"] = ">= 0.95"
	goal["Relay"] = ">= 0.5"
	goal["Apply10k"] = "<= 1.5"
	goal["Graph"] = "<= 1.5"
	goal["Layout5000"] = "<= 1"
	goal["GraphCommand"] = "<= 0.1"
	goal["Blocked"] = "<= 1.5"
	goal["Runs/needed=3"] = "<= 0.5"
	goal["SideBySide"] = "<= 1.15"
	row("name", "ours", "baseline", "ratio", "goal")
}

/^Benchmark/ {
	name = $1; sub(/^Benchmark/, "", name); sub(/-[0-9]+$/, "", name)
	ns = mbs = runs = ""
	found = 0
	for (i = 3; i < NF; i += 2) {
		if ($(i + 1) == "ns/op") ns = $i
		else if ($(i + 1) == "MB/s") mbs = $i
		else if ($(i + 1) == "runs/op") runs = $i
		else if ($(i + 1) ~ /^x-/) { ratio = $i; base = substr($(i + 1), 3); found = 1 }
	}
	if (found) {
		if (ratio + 0 == 0) next
		if (runs != "") row(name, sprintf("%.1f runs", runs), sprintf("%.1f runs %s", runs / ratio, base), sprintf("%.2f", ratio), goal_of(name))
		else if (goal_of(name) ~ /^>/ && mbs != "") row(name, mbs " MB/s", sprintf("%.0f MB/s %s", mbs / ratio, base), ratio, goal_of(name))
		else row(name, time(ns), time(ns / ratio) " " base, sprintf("%.2f", ratio), goal_of(name))
		next
	}
	n = split(name, part, "/")
	if (n < 2) next
	group = part[1]; variant = substr(name, length(group) + 2)
	if (!(group in count)) groups[++ngroups] = group
	variants[group, ++count[group]] = variant
	took[group, variant] = ns
	next
}

/^(PASS|ok)/ { flush() }
/^(FAIL|--- FAIL|--- SKIP|panic|#)/ || /^ .*[Ee]rror|not installed/ { print; if ($1 == "FAIL") failed = 1 }
END { flush(); exit failed }

# flush prints the groups that are complete.
function flush(    g, v, group, variant, base) {
	for (g = 1; g <= ngroups; g++) {
		group = groups[g]
		base = ""
		for (v = 1; v <= count[group]; v++) {
			variant = variants[group, v]
			if (variant == "baseline" || (group, "ours") in took && variant != "ours") base = variant
		}
		if (base != "") for (v = 1; v <= count[group]; v++) {
			variant = variants[group, v]
			if (variant == base) continue
			name = variant == "ours" ? group : group "/" variant
			row(name, time(took[group, variant]), time(took[group, base]) (base == "baseline" ? "" : " " base), sprintf("%.2f", took[group, variant] / took[group, base]), goal_of(name))
		}
	}
	ngroups = 0; delete count; delete took
}

# goal_of returns the goal of a name, or of what it is a part of.
function goal_of(name) {
	while (!(name in goal) && sub(/\/[^\/]*$/, "", name)) {}
	return goal[name]
}

function row(name, ours, baseline, ratio, goal) { printf "%-28s %14s %24s %8s %8s\n", name, ours, baseline, ratio, goal; fflush() }
function time(ns) { return ns >= 1e9 ? sprintf("%.2f s", ns / 1e9) : ns >= 1e6 ? sprintf("%.2f ms", ns / 1e6) : sprintf("%.2f us", ns / 1e3) }
