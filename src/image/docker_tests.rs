//! Images against a real Docker daemon.
use super::*;

pub(super) async fn docker() -> Option<Docker> {
    let docker = Docker::connect_with_local_defaults().ok()?;
    docker.negotiate_version().await.ok()
}

#[tokio::test]
async fn building() {
    let docker = docker().await.unwrap();
    let events = Events::to(|event| match event {
        crate::event::Event::Progress(_) => (),
        e => eprintln!("{e:?}"),
    });
    let image = build(&docker, &events, BuildOptions::default()).await.unwrap();
    eprintln!("{image:#?}");
}
