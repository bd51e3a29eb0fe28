package agent

// helpers are programs that commands in the guest run.
var helpers = map[string]func(){}
