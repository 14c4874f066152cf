//! The README's examples in Rust. They are ignored, and a test runs them in a project of its own.

#[ignore = "another test starts it as a process of its own"]
// README
#[tokio::test]
async fn a_new_database_has_no_tasks() -> tfdev::Result<()> {
    let db = tfdev::fresh().await?;
    let pool = db.pool_options().connect_with(db.connect_options()).await.unwrap();
    let tasks: i64 = sqlx::query_scalar("SELECT count(*) FROM tasks").fetch_one(&pool).await.unwrap();
    assert_eq!(tasks, 0);
    Ok(())
}
// END

#[ignore = "another test starts it as a process of its own"]
// README
#[test]
fn an_application_of_any_kind_gets_a_url() -> tfdev::Result<()> {
    let db = tfdev::FreshConfig::new().sql("CREATE TABLE tariffs (id int)").database_blocking()?;
    assert!(db.url().starts_with("postgres://"));
    Ok(())
}
// END
