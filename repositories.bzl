"""Ways to get the program bj, for WORKSPACE and, in extensions.bzl, MODULE.bazel."""

_BUILD = """load("@bj//:defs.bzl", "bj_toolchain")

package(default_visibility = ["//visibility:public"])

exports_files(["bj"])

bj_toolchain(
    name = "bj_toolchain",
    bj = "bj",
)

toolchain(
    name = "toolchain",
    exec_compatible_with = ["@platforms//os:linux"],
    target_compatible_with = ["@platforms//os:linux"],
    toolchain = ":bj_toolchain",
    toolchain_type = "@bj//:toolchain_type",
)
"""

def _bj_binary_impl(ctx):
    if ctx.attr.url:
        ctx.download(ctx.attr.url, "bj", sha256 = ctx.attr.sha256, executable = True)
    elif ctx.attr.path:
        ctx.symlink(ctx.attr.path, "bj")
    else:
        found = ctx.which("bj")
        if not found:
            fail("there is no bj on PATH; give bj_binary a path, or a url and its sha256")
        ctx.symlink(found, "bj")
    ctx.file("BUILD.bazel", _BUILD)

bj_binary = repository_rule(
    implementation = _bj_binary_impl,
    doc = "A prebuilt bj: downloaded, at a path, or on PATH.",
    environ = ["PATH"],
    attrs = {
        "path": attr.string(doc = "where it lies on this machine"),
        "sha256": attr.string(doc = "of what url gives"),
        "url": attr.string(doc = "where it is fetched"),
    },
)

def bj_register(name = "bj_binary", path = "", url = "", sha256 = ""):
    """Makes the repository of a prebuilt bj and registers its toolchain.

    Args:
      name: of the repository
      path: where the program lies on this machine; on PATH if neither is given
      url: where it is fetched
      sha256: of what url gives
    """
    bj_binary(name = name, path = path, url = url, sha256 = sha256)
    native.register_toolchains("@%s//:toolchain" % name)
