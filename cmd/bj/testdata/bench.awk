# Prints Go's benchmark lines that carry the metrics ours, baseline, ratio and
# goal as a table, and passes failures on.
#
#	b.ReportMetric(5.3, "ours-ms"); b.ReportMetric(5.1, "baseline-ms")
#	b.ReportMetric(1.04, "ratio"); b.ReportMetric(2, "goal")
#
# A goal below which a ratio must stay is written as it is; one that a ratio
# must reach (throughput) is the metric min-goal.

BEGIN { printf "%-44s %16s %16s %8s %8s\n", "name", "ours", "baseline", "ratio", "goal" }

/^Benchmark/ {
	name = $1; sub(/^Benchmark/, "", name); sub(/-[0-9]+$/, "", name)
	ours = baseline = ratio = goal = ""
	sign = "<="
	for (i = 3; i < NF; i += 2) {
		value = $i; unit = $(i + 1)
		if (unit ~ /^ours/) { ours = value suffix(unit) }
		else if (unit ~ /^baseline/) { baseline = value suffix(unit) }
		else if (unit == "ratio") { ratio = value }
		else if (unit == "goal") { goal = value }
		else if (unit == "min-goal") { goal = value; sign = ">=" }
	}
	if (ratio == "") next
	printf "%-44s %16s %16s %8s %8s\n", name, ours, baseline, ratio, sign " " goal
	next
}

/^(FAIL|---|panic|#)/ || /Error|error:/ { print; if ($1 == "FAIL") failed = 1 }
END { exit failed }

function suffix(unit) { return unit ~ /-/ ? " " substr(unit, index(unit, "-") + 1) : "" }
