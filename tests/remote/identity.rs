//! Another server at the address under which the instance's own was reached.

use super::run;
use crate::support::remote::Remote;
use crate::support::{TestEnv, one, query};

#[test]
fn another_server_on_the_port_of_an_instance_is_refused_before_any_write() {
    let Some(env) = TestEnv::docker() else { return };
    let Some(remote) = Remote::start(&env) else { return };
    let way = |arguments: &[&str]| remote.tls(&env, arguments);
    let port = |instance: &str| {
        let up = run(&way, &["up", "--json", "--instance", instance, "--profile", "dev", "--dataset", "small"]).ok();
        (up.json()["port"].to_string(), up.json()["url"].as_str().unwrap().to_owned())
    };
    let ((own, _), (other, other_url)) = (port("dev"), port("other"));
    assert_ne!(own, other);
    query(&other_url, "DELETE FROM tasks");
    // What comes for the port of `dev` goes to the server of `other`.
    let forward =
        ["-t", "nat", "-I", "PREROUTING", "-p", "tcp", "--dport", &own, "-j", "REDIRECT", "--to-port", &other];
    remote.run("iptables", &forward);
    for command in [
        &["migrate"] as &[&str],
        &["seed", "--dataset", "small", "--replace", "--yes"],
        &["psql", "--", "-c", "CREATE TABLE written ()"],
    ] {
        run(&way, command).exits(5).says("nothing was written").says("it is another server");
    }
    run(&way, &["up"]).exits(5).says("another server answers").says("nothing was written");
    assert_eq!(one(&other_url, "SELECT count(*) FROM tasks"), "0");
    assert_eq!(one(&other_url, "SELECT coalesce(to_regclass('written')::text, 'none')"), "none");
}
