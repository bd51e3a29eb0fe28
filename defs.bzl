"""Rules that run recipes, and look at them, as Bazel tests.

    load("@bj//:defs.bzl", "bj_fmt_test", "bj_graph_test", "bj_test")

A test sees only the files that it names: the recipe's own, those that it loads,
those of the services that it allows, and bj.star. Every rule needs a toolchain of
the type @bj//:toolchain_type; repositories.bzl has ways to get one.
"""

TOOLCHAIN = "@bj//:toolchain_type"

def _bj_toolchain_impl(ctx):
    return [platform_common.ToolchainInfo(bj = ctx.file.bj)]

bj_toolchain = rule(
    implementation = _bj_toolchain_impl,
    doc = "Says which program bj is: one that was downloaded, found or built.",
    attrs = {
        "bj": attr.label(allow_single_file = True, mandatory = True, doc = "the static program; built by go_binary(pure = \"on\"), or prebuilt"),
    },
)

# Bazel writes the label of a target of the main workspace in three ways, by its
# version; a recipe writes it in one.
def _label(label):
    return "//%s:%s" % (label.package, label.name)

def _quote(s):
    return "'" + s.replace("'", "'\\''") + "'"

def _folder(path):
    return path.rpartition("/")[0] or "."

# _runner makes the script that a test is. It begins in the folder of the runfiles
# of the main workspace, and goes to that of bj.star; bj finds all else by itself.
def _runner(ctx, words, targets = {}):
    bj = ctx.toolchains[TOOLCHAIN].bj
    lines = ["#!/bin/sh", "root=$PWD", "cd " + _quote(_folder(ctx.file.workspace.short_path)) + " || exit 3"]
    for label, file in sorted(targets.items()):
        lines.append("set -- --target " + _quote(label) + "=\"$root/\"" + _quote(file.short_path) + " \"$@\"")
    lines.append("exec \"$root/\"%s %s \"$@\"" % (_quote(bj.short_path), " ".join([_quote(w) for w in words])))
    script = ctx.actions.declare_file(ctx.label.name + ".sh")
    ctx.actions.write(script, "\n".join(lines) + "\n", is_executable = True)
    runfiles = ctx.runfiles(files = [bj, ctx.file.workspace] + ctx.files.srcs + ctx.files.data)
    return script, runfiles

_FILES = {
    "srcs": attr.label_list(allow_files = [".star"], doc = "the Starlark files that are looked at, and those that they load or allow"),
    "data": attr.label_list(allow_files = True, doc = "what recipes read: sources of files and secrets, programs, images, known graphs"),
    "workspace": attr.label(default = "@//:bj.star", allow_single_file = True, doc = "the file bj.star at the root of the recipes' labels"),
}

# _pattern writes what a BUILD file says of recipes as a pattern of bj.
def _pattern(ctx, text):
    if text.startswith("//") or text.startswith("-//"):
        return text
    root = _folder(ctx.file.workspace.short_path)
    package = ctx.label.package
    if root != ".":
        if package != root and not package.startswith(root + "/"):
            fail("%s is outside of %s: name recipes by //labels" % (package, root))
        package = package[len(root) + 1:]
    if text == "...":
        return "//" + package + ("/..." if package else "...")
    return "//" + package + ":" + text.lstrip(":")

def _bj_test_impl(ctx):
    targets = {}
    runfiles = []
    for tool in ctx.attr.tools:
        program = tool[DefaultInfo].files_to_run.executable
        if program == None:
            files = tool[DefaultInfo].files.to_list()
            if len(files) != 1:
                fail("%s is no program: it makes %d files" % (tool.label, len(files)))
            program = files[0]
        targets[_label(tool.label)] = program
        runfiles.append(ctx.runfiles(files = [program]).merge(tool[DefaultInfo].default_runfiles))
    script, all = _runner(ctx, ["test", "--bazel", _pattern(ctx, ctx.attr.recipe)] + ctx.attr.flags, targets)
    for r in runfiles:
        all = all.merge(r)

    # Machines are a sandbox of their own. In Bazel's they have neither limits nor,
    # for root, users: see docs/scaling.md.
    info = {} if ctx.attr.sandboxed else {"no-sandbox": "1"}
    return [DefaultInfo(executable = script, runfiles = all), testing.ExecutionInfo(info)]

bj_test = rule(
    implementation = _bj_test_impl,
    doc = "Runs one recipe, or all of a package: with shard_count each shard takes a part of them.",
    test = True,
    toolchains = [TOOLCHAIN],
    attrs = dict(
        _FILES,
        recipe = attr.string(default = "all", doc = "a recipe of this package, \"all\", \"...\", or a //pattern"),
        tools = attr.label_list(doc = "programs that Bazel builds, for tool(target = ...) of the recipes"),
        sandboxed = attr.bool(doc = "also in the sandbox of Bazel, which must not run as root"),
        flags = attr.string_list(doc = "further flags of bj test"),
    ),
)

def _bj_fmt_test_impl(ctx):
    root = _folder(ctx.file.workspace.short_path)
    files = [f.short_path if root == "." else f.short_path[len(root) + 1:] for f in ctx.files.srcs]
    script, runfiles = _runner(ctx, ["fmt", "--check"] + files)
    return [DefaultInfo(executable = script, runfiles = runfiles)]

bj_fmt_test = rule(
    implementation = _bj_fmt_test_impl,
    doc = "Fails if bj fmt would change one of the files.",
    test = True,
    toolchains = [TOOLCHAIN],
    attrs = _FILES,
)

def _bj_graph_test_impl(ctx):
    words = ["graph", "--cycles"] + [_pattern(ctx, p) for p in ctx.attr.patterns]
    script, runfiles = _runner(ctx, words)
    return [DefaultInfo(executable = script, runfiles = runfiles)]

bj_graph_test = rule(
    implementation = _bj_graph_test_impl,
    doc = "Fails if the recovery graph has a blocking cycle that bj.star does not waive.",
    test = True,
    toolchains = [TOOLCHAIN],
    attrs = dict(_FILES, patterns = attr.string_list(default = ["//..."], doc = "the recipes that the graph is made of")),
)
