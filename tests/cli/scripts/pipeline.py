import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

data = pd.read_csv("customers.csv")
numbers = ["tenure", "charge", "calls", "data_gb"]
categories = ["plan"]

X, y = data[numbers + categories], data["churned"]
X_train, X_test, y_train, y_test = train_test_split(X, y, train_size=0.7, random_state=0)

prepared = ColumnTransformer(
    [
        ("num", Pipeline([("impute", SimpleImputer(strategy="median")), ("scale", StandardScaler())]), numbers),
        ("cat", OneHotEncoder(handle_unknown="ignore"), categories),
    ]
)
pipe = Pipeline([("prepare", prepared), ("model", LogisticRegression(max_iter=500))])
search = GridSearchCV(pipe, {"model__C": [0.1, 1.0]}, cv=3, scoring="roc_auc")
search.fit(X_train, y_train)
print(search.best_params_, search.score(X_test, y_test))
