module bj

go 1.26
